"""A study: every loss with the same tuning budget in its own search space, then fresh seeds, and what they show."""
