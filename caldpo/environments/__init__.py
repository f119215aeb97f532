"""Embedded environments with a known true reward."""
