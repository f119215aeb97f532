"""The Language Model Evaluation Harness (EleutherAI, ``lm_eval``): which tasks, where they run, how they are read."""
