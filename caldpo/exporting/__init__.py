"""Write trained policies as Hugging Face folders with a model card, and upload them to the hub."""
