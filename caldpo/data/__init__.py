"""Preference pairs: from raw rows to padded batches."""
