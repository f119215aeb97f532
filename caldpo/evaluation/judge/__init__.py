"""Asking a language model which of two responses is better: questions, endpoint, saved verdicts, rates."""
