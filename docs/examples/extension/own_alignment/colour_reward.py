"""The true reward of an answer: 1 for a colour that the prompt's thing can have, less 0.05 for each word."""

from __future__ import annotations

COLOURS = {"apple": ("red", "green"), "river": ("blue", "grey"), "lemon": ("yellow",), "stone": ("grey",)}


def reward(prompt: str, response: str) -> float:
    """Score any response, also one of a policy."""
    asked = next((thing for thing in COLOURS if thing in prompt), None)
    words = response.replace(".", " ").split()
    named = asked is not None and any(word in COLOURS[asked] for word in words)
    return float(named) - 0.05 * len(words)
