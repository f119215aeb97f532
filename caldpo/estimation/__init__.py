"""Estimate steps, tokens, memory and FLOPs of a run before it starts, from its configuration and a data sample."""
