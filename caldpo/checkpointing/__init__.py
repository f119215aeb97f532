"""Checkpoints from which a run goes on as if it had never been stopped."""
