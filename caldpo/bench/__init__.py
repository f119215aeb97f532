"""``python -m caldpo.benchmark``: this project against TRL's ``DPOTrainer``, side by side on one machine."""
