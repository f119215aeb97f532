"""Run the Language Model Evaluation Harness (EleutherAI, ``lm_eval``): tasks, environments, results."""
