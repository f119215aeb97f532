"""Rows that are nearly right, values of every kind, and files that something happened to."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

from hypothesis import strategies as st

# characters with which readers, tokenizers and templates have had trouble; and half of a surrogate pair
ODD = '\0\n\r\t\x0b\x85\u2028\ufeff\u200b\u0301\ud800\udc80\udfff\U0001f600{}[]"\\,<>|:%$'
letters = st.sampled_from(ODD) | st.characters(codec=None)  # any code point, surrogates included
texts = st.text(letters, max_size=40) | st.sampled_from(
    ["", " ", "</s>", "<s>", "<|endoftext|>", "\n\nHuman: a\n\nAssistant: b", "\n\nAssistant:", "{{ 1 }}", "w9", "NaN"]
)
numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, 1, -1, 1.0, True, 10**400, 2**63, -(2**63), 1e308, 5e-324, float("nan"), float("inf")])
)
scalars = st.none() | st.booleans() | numbers | texts
roles = st.sampled_from(["user", "assistant", "system", "tool", "User", ""]) | scalars
messages = st.fixed_dictionaries({}, optional={"role": roles, "content": texts | scalars, "name": scalars})
good_turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}), max_size=5
)


def nested(depth: int) -> Any:
    """A list in a list, and so on."""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


anything = st.recursive(
    scalars | st.sampled_from([nested(5), nested(300)]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
# what a parquet file may hold beyond JSON
of_tables = (
    anything | st.binary(max_size=9) | st.sampled_from([decimal.Decimal("1.5"), datetime.date(1, 1, 1), b"\xff"])
)
sides = texts | good_turns | st.lists(messages, max_size=3) | anything
columns = {
    "prompt": sides,
    "chosen": sides,
    "rejected": sides,
    "prompt_id": scalars,
    "messages": anything,
    "score_chosen": numbers | scalars,
    "score_rejected": numbers | scalars,
    "info": st.dictionaries(st.sampled_from(["post", "title", "subreddit", "article"]), texts | scalars) | anything,
    "summaries": st.lists(st.fixed_dictionaries({}, optional={"text": texts | scalars}), max_size=3) | anything,
    "choice": st.sampled_from([0, 1, 2, 0.0, 1.0, True, "1"]) | anything,
    "completion": sides,
    "label": st.booleans() | st.sampled_from([0, 1, 1.0, "true"]) | anything,
    "responses": st.lists(sides, max_size=4) | anything,
    "scores": st.lists(st.integers(0, 3), max_size=4) | anything,
}
rows = st.fixed_dictionaries({}, optional=columns) | st.dictionaries(texts, anything, max_size=4)
good_rows = st.fixed_dictionaries(
    {"prompt": st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)}
    | {side: st.text("abc é", min_size=1, max_size=9) for side in ("chosen", "rejected")},
    optional={"score_chosen": st.integers(0, 9), "score_rejected": st.integers(0, 9)},
)

# what happens to bytes: cut, changed, something put in, a piece twice
PIECES = (
    b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe9", b"\xed\xa0\x80", b"\n", b"\r", b'"', b",", b"[", b"]", b"{",
    b"}", b":", b"\\", b"\\ud800", b"NaN", b"1e999", b"9" * 5000, b"[" * 3000, b'{"a":' * 2000, b"null", b"\x1f\x8b",
)  # fmt: skip
mutations = st.lists(
    st.tuples(
        st.sampled_from(["cut", "put", "change", "twice"]),
        st.floats(0, 1),
        st.sampled_from(PIECES) | st.binary(max_size=4),
    ),
    max_size=4,
)


def mutated(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    """``content`` after all that happened to it, each at a place given as a share of its length."""
    for what, share, piece in changes:
        at = int(share * len(content))
        if what == "cut":
            content = content[:at]
        elif what == "put":
            content = content[:at] + piece + content[at:]
        elif what == "change":
            content = content[:at] + piece + content[at + len(piece) :]
        else:
            content += content[at:]
    return content
