"""Configuration: signatures as schemas, checks before anything heavy loads, commands, runs and sweeps."""
