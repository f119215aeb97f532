"""Print prompts and responses, and write them as CSV; control characters of a model's text never reach a terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caldpo.evaluation.evaluation_cache import Sampling
from caldpo.generation.generation_checks import PromptContent
from caldpo.generation.responses import Response
from caldpo.utils.atomic_io import append_text, atomic_text
from caldpo.utils.text_format import number

GENERATIONS = "generations.csv"
CHAT = "chat.csv"
_MAX_SHOWN = 1500  # characters of a prompt on the terminal; the file has all


# ---- terminal


def print_prompt(console: Console, title: str, content: PromptContent) -> None:
    """Print a prompt: the end of a long one, which the response continues."""
    console.print(Text(title, "bold"))
    turns = [("", content)] if isinstance(content, str) else [(f"{m['role']}: ", m["content"]) for m in content]
    text = "\n".join(role + turn for role, turn in turns)
    if len(text) > _MAX_SHOWN:
        console.print(Text(f"({len(text) - _MAX_SHOWN:,} characters before)", "dim"))
    console.print(Text(printable(text[-_MAX_SHOWN:])), soft_wrap=True)


def print_responses(
    console: Console, responses: Sequence[Response], chosen: tuple[str, float | None] | None = None
) -> None:
    """Print the responses to one prompt, with length, log-ratio and true reward.

    ``chosen`` is the text and the true reward of the data's preferred response.
    """
    several = max(response.sample for response in responses) > 0
    rows = [] if chosen is None else [("chosen (data)", chosen[0].strip(), "", "", _number(chosen[1]))]
    for response in responses:
        label = f"{response.role} {response.sample + 1}" if several else response.role
        tokens = f"{response.tokens}" if response.ended else f"{response.tokens}, cut"
        ratio, reward = _number(response.log_ratio), _number(response.true_reward)
        rows.append((label, response.text.strip(), tokens, ratio, reward))
    headers = ("", "response", "tokens", "log-ratio", "reward")
    shown = [i for i in range(len(headers)) if i < 3 or any(row[i] for row in rows)]
    table = Table(box=box.SIMPLE, show_lines=True)
    for i in shown:
        table.add_column(headers[i], style="bold" if i == 0 else None, justify="left" if i < 2 else "right")
    for row in rows:
        table.add_row(*(Text(printable(row[i])) for i in shown))
    console.print(table)


def print_legend(console: Console, responses: Sequence[Response]) -> None:
    """Explain the columns that the tables have."""
    lines = []
    if any(response.log_ratio is not None for response in responses):
        lines.append("log-ratio: log pi(response) - log pi_ref(response), nats, summed over its tokens")
    if any(response.true_reward is not None for response in responses):
        lines.append("reward: the true one, in the data's units")
    if not all(response.ended for response in responses):
        lines.append("cut: truncated before the response ended (max_new_tokens)")
    for line in lines:
        console.print(line, style="dim", highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Escape the control characters of ``text``, but for line ends and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _number(value: float | None) -> str:
    return "" if value is None else number(value)


# ---- files


def write_table(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table of at least one row, replacing the last one."""
    with atomic_text(file) as stream:
        stream.write(_as_csv(rows, header=True))


def rows_of(content: PromptContent, responses: Sequence[Response], sampling: Sampling) -> list[dict[str, Any]]:
    """Return one row per response; unknown values are empty, a conversation is the JSON of its messages."""
    prompt = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return [
        {
            "prompt": prompt,
            "sample": response.sample,
            "who": response.role,
            "response": response.text,
            "tokens": response.tokens,
            "ended": str(response.ended).lower(),
            "log_ratio": response.log_ratio,
            "true_reward": response.true_reward,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
        }
        for response in responses
    ]


def append_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows to a table, which gets its header with the first ones."""
    append_text(file, _as_csv(rows, header=not file.exists()))


def _as_csv(rows: Sequence[dict[str, Any]], *, header: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
