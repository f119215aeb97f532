"""A file per suite."""
