"""Embedded environments whose true reward is known."""
