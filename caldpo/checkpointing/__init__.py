"""Checkpoints from which a run resumes bit for bit, and the signals that stop it."""
