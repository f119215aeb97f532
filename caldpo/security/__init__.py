"""Mask secrets, and keep what a run writes inside its folder."""
