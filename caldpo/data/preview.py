"""A few tokenised pairs to look at before a run: what the policy reads, and which tokens bear the loss.

Doubled BOS or EOS, a missing template, a lost question: each is seen here in a second and nowhere else in a week.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from caldpo.data.tokenize import TokenizedSplit

HEAD, TAIL = 24, 24  # tokens shown of each end of a text
PROMPT_STYLE, LOSS_STYLE = "dim", "bold green"


def print_preview(
    split: TokenizedSplit, tokenizer: PreTrainedTokenizerBase, count: int, console: Console
) -> None:
    """Print the first ``count`` pairs of a split, each response token in brackets, long texts elided."""
    shown = split.pairs[:count]
    if not shown:
        return
    console.print(
        Text.assemble(
            "Tokenised pairs: the prompt as plain text, ", ("[tokens][in][brackets]", LOSS_STYLE), " bear the loss"
        )
    )
    eos = tokenizer.eos_token_id
    for pair in shown:
        console.print(Text(f"pair {pair.index} ({pair.origin})", style="bold"))
        cut = ", cut from the left" if pair.index in split.cut_prompts else ""
        console.print(_line("prompt", pair.prompt_ids, cut, tokenizer, bears_loss=False))
        for name, ids in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
            cut = "" if ids[-1] == eos else ", cut from the right"
            console.print(_line(name, ids, cut, tokenizer, bears_loss=True))


def pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text each token adds to those before it; a token without text of its own by its vocabulary name.

    Control characters are escaped, so that data cannot move the cursor or colour the terminal.
    """
    result, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        added = text[len(before) :] if text.startswith(before) else ""
        if not added or "\ufffd" in added:  # a lone byte of a longer character, or a swallowed space
            added = str(tokenizer.convert_ids_to_tokens(int(ids[end - 1])))
        result.append("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in added))
        before = text
    return result


def _line(
    name: str, ids: Sequence[int], note: str, tokenizer: PreTrainedTokenizerBase, *, bears_loss: bool
) -> Text:
    head, tail, left_out = ids, ids[:0], len(ids) - HEAD - TAIL
    if left_out > 0:
        head, tail = ids[:HEAD], ids[-TAIL:]
    line = Text.assemble((f"  {name:<8} ", "bold"), f"{len(ids):>5} tokens{note}: ")
    for part in (head, tail):
        shown = pieces(part, tokenizer)
        if part is tail and left_out > 0:
            line.append(f" ... {left_out} tokens ... ", style="italic")
        text = "".join(f"[{piece}]" for piece in shown) if bears_loss else "".join(shown)
        line.append(text, style=LOSS_STYLE if bears_loss else PROMPT_STYLE)
    return line
