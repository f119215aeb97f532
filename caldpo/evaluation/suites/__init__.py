"""Suites of measures, one file each."""
