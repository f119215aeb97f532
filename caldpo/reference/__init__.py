"""Where the reference's log-probs come from."""
