"""Sample responses to read: prompts, sampling, chat, terminal and table of ``python -m caldpo.generate``."""
