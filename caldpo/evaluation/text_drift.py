"""How likely text that no pair is about has become: what training changed beside what it was for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caldpo.data.pair import TokenizedPair
from caldpo.data.sources.json_rows import read_jsonl
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy

PLAIN = Path(__file__).parent / "texts" / "plain.txt"
MOST_UNKNOWN = 0.2  # share of unknown tokens above which a text is none for this tokenizer
_KEY = "displacement.unrelated"


@dataclass(frozen=True)
class Drift:
    """Log-ratios of texts.

    Args:
        title: of the drift, in a table.
        said: what the texts are.
        ratios: log-ratio policy/reference of each text, all tokens but the first, nats, ``(texts,)``.
        tokens: how many those are.
    """

    title: str
    said: str
    ratios: NDArray[np.float64]
    tokens: NDArray[np.float64]


def read_texts(path: str) -> list[str]:
    """The texts of a file: one a line of ``.txt``, or the key ``text`` of each line of ``.jsonl``.

    Raises:
        CaldpoError: there is no such file, or a line that holds no text.
    """
    file = Path(path).expanduser()
    try:
        found = _of_jsonl(file) if file.suffix == ".jsonl" else file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise CaldpoError(f"cannot be read: {reason}", key=_KEY, value=path) from error
    texts = [text for text in found if text.strip()]
    if not texts:
        raise CaldpoError("holds no text", key=_KEY, value=path)
    return texts


def measure_drift(subject: EvaluatedPolicy, unrelated: str, longest: int) -> Drift | None:
    """Log-ratios of unrelated texts; None where none are wanted, or there are none for this tokenizer.

    Args:
        subject: with a reference.
        unrelated: ``auto``: plain sentences that come with the project, or, where the tokenizer does not know their
            words, the held-out prompts, on which no loss was ever computed; ``none``; or a file.
        longest: tokens of a text that are looked at.
    """
    if unrelated == "none":
        return None
    texts = read_texts(str(PLAIN) if unrelated == "auto" else unrelated)
    ids = [subject.tokenizer(text)["input_ids"][:longest] for text in texts]
    title = "drift on unrelated text"
    said = f"{len(ids)} plain sentences" if unrelated == "auto" else f"{len(ids)} texts of {unrelated}"
    if _unknown(ids, subject.tokenizer.unk_token_id) > MOST_UNKNOWN:
        if unrelated != "auto":
            raise CaldpoError("most of its words are unknown to the model's tokenizer", key=_KEY, value=unrelated)
        ids = [h.prompt_ids for h in subject.held_out(len(subject.pairs))]
        title = "drift on held-out prompts"
        said = "the held-out prompts, on which no loss is computed (plain text is unknown to this tokenizer)"
    ids = [tokens for tokens in ids if len(tokens) > 1]
    if not ids:
        return None
    pairs = [TokenizedPair(t[:1], t[1:], t[1:2], None, None, i, "") for i, t in enumerate(ids)]
    ratios = (subject.logps("policy", pairs, "unrelated text") - subject.logps("reference", pairs, "unrelated text"))[0]
    return Drift(title, said, ratios, np.array([len(t) - 1 for t in ids], dtype=np.float64))


def _unknown(ids: Sequence[Sequence[int]], unk: int | None) -> float:
    tokens = [token for text in ids for token in text]
    return float(np.mean([token == unk for token in tokens])) if tokens else 1.0


def _of_jsonl(file: Path) -> list[str]:
    texts = []
    for row in read_jsonl(file):
        text = row.value.get("text") if isinstance(row.value, Mapping) else None
        if row.error is not None or not isinstance(text, str):
            raise CaldpoError(row.error or 'is no object with a "text"', key=row.origin)
        texts.append(text)
    return texts
