"""Evaluate a run, the runs of a sweep, or any Hugging Face model by suites of measures."""
