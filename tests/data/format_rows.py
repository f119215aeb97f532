"""Rows of the known formats, to be changed in one place at a time."""

from __future__ import annotations


def user(content):
    """A user turn."""
    return {"role": "user", "content": content}


def assistant(content):
    """An assistant turn."""
    return {"role": "assistant", "content": content}


def system(content):
    """A system turn."""
    return {"role": "system", "content": content}


def uf(**changes):
    """A row of UltraFeedback; a column set to "absent" is left out."""
    row = {
        "prompt": "Hi?",
        "prompt_id": "0",
        "chosen": [user("Hi?"), assistant("Hello.")],
        "rejected": [user("Hi?"), assistant("No.")],
        "messages": [],
        "score_chosen": 8.0,
        "score_rejected": 4,
    }
    return {k: v for k, v in (row | changes).items() if v != "absent"}


def tldr(**changes):
    """A row of the TL;DR comparisons."""
    row = {
        "info": {"id": "t3", "post": "I lost it.", "title": "Help", "subreddit": "tifu", "article": None},
        "summaries": [{"text": " Lost.", "policy": "a"}, {"text": "Found it \n", "policy": "b"}],
        "choice": 1,
        "worker": "w",
        "extra": {"confidence": 8},
    }
    return row | changes
