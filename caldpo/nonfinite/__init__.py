"""Guard against non-finite values: refuse certain overflow, locate values in a step, stop or skip it, dump it."""
