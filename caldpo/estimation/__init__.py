"""What a run will need, before it is started: steps, tokens and memory, from its configuration and some of its data."""
