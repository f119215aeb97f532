"""Trained policies as Hugging Face folders, with a model card, and on to the hub."""
