"""Going on with a run: which one, whether it is still the same, and from where. No heavy imports."""
