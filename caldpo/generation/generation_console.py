"""How prompts and responses look on the terminal. Control characters of a model's text never reach it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caldpo.generation.responses import Response
from caldpo.generation.user_prompts import Asked
from caldpo.utils.text_format import number

_SHOWN = 1500  # characters of a prompt; the file has all


def print_prompt(console: Console, title: str, asked: Asked) -> None:
    """What is answered: the end of a long one, since the response follows that."""
    console.print(Text(title, "bold"))
    turns = [("", asked)] if isinstance(asked, str) else [(f"{m['role']}: ", m["content"]) for m in asked]
    shown = "\n".join(role + text for role, text in turns)
    if len(shown) > _SHOWN:
        console.print(Text(f"({len(shown) - _SHOWN:,} characters before)", "dim"))
    console.print(Text(printable(shown[-_SHOWN:])), soft_wrap=True)


def print_responses(
    console: Console, responses: Sequence[Response], chosen: tuple[str, float | None] | None = None
) -> None:
    """Responses below one another, with what is known of them.

    Args:
        console: where.
        responses: to one prompt.
        chosen: text and true reward of the response that people preferred.
    """
    ratios = any(response.log_ratio is not None for response in responses)
    rewards = any(response.true_reward is not None for response in responses)
    several = max(response.sample for response in responses) > 0
    table = Table("", "response", box=box.SIMPLE, show_lines=True)
    for header in ["tokens", *(["log-ratio"] if ratios else []), *(["reward"] if rewards else [])]:
        table.add_column(header, justify="right")

    def add(who: str, text: str, tokens: str, ratio: float | None, reward: float | None) -> None:
        known = [tokens, *([_number(ratio)] if ratios else []), *([_number(reward)] if rewards else [])]
        table.add_row(Text(who, "bold"), Text(printable(text.strip())), *known)

    if chosen is not None:
        add("chosen (data)", chosen[0], "", None, chosen[1])
    for response in responses:
        who = f"{response.who} {response.sample + 1}" if several else response.who
        tokens = f"{response.tokens}" if response.ended else f"{response.tokens}, cut"
        add(who, response.text, tokens, response.log_ratio, response.true_reward)
    console.print(table)


def print_legend(console: Console, responses: Sequence[Response]) -> None:
    """What the columns mean."""
    lines = {
        "log-ratio: log pi(response) - log pi_ref(response), nats, summed over its tokens": any(
            response.log_ratio is not None for response in responses
        ),
        "reward: the true one, in the data's units": any(response.true_reward is not None for response in responses),
        "cut: the length ran out before the response ended (max_new_tokens)": any(
            not response.ended for response in responses
        ),
    }
    for line in (line for line, applies in lines.items() if applies):
        console.print(line, style="dim", highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """``text`` with control characters, but for line ends and tabs, escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _number(value: float | None) -> str:
    return "" if value is None else number(value)
