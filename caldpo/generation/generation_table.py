"""The files that responses are kept in: a table of the last prompts, and one that conversations are added to.

CSV, because the two are for reading: every spreadsheet and pandas open it, and a row is complete on disk as soon as it
is written.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from caldpo.evaluation.evaluation_cache import Sampling
from caldpo.generation.responses import Response
from caldpo.generation.user_prompts import Asked
from caldpo.utils.atomic_io import append_text, atomic_text

GENERATIONS = "generations.csv"
CHAT = "chat.csv"


def write_table(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A new table, of at least one row, in place of the last one."""
    with atomic_text(file) as opened:
        opened.write(_as_text(rows, header=True))


def rows_of(asked: Asked, responses: Sequence[Response], how: Sampling) -> list[dict[str, Any]]:
    """A row per response; what is not known is empty. A conversation is the JSON of its messages."""
    prompt = asked if isinstance(asked, str) else json.dumps(asked, ensure_ascii=False)
    return [
        {
            "prompt": prompt,
            "sample": response.sample,
            "who": response.who,
            "response": response.text,
            "tokens": response.tokens,
            "ended": str(response.ended).lower(),
            "log_ratio": response.log_ratio,
            "true_reward": response.true_reward,
            "temperature": how.temperature,
            "seed": how.seed,
        }
        for response in responses
    ]


class Transcript:
    """A conversation as it grows, added to those that were had before.

    Args:
        file: made with its header where it is not there.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.session = datetime.now(UTC).isoformat(timespec="seconds")
        self.turns = 0

    def add(self, conversation: int, text: str, responses: Sequence[Response], how: Sampling) -> None:
        """One turn: what the user typed and the responses, on disk when this returns.

        Args:
            conversation: its number within the session; a new one knows nothing of those before it.
            text: as typed.
            responses: to it.
            how: they were drawn.
        """
        told = {"session": self.session, "conversation": conversation, "turn": self.turns}
        rows = [told | row for row in rows_of(text, responses, how)]
        append_text(self.file, _as_text(rows, header=not self.file.exists()))
        self.turns += 1


def _as_text(rows: Sequence[dict[str, Any]], *, header: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
