"""Judge pairs of responses by a language model: questions, endpoint, cached verdicts, win rates."""
