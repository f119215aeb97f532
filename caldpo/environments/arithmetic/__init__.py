"""Chains of sums, where chosen and rejected share nearly every token: prompts, chains, reward."""
