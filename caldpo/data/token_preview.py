"""A few tokenised pairs to look at before a run: what the policy reads, and which tokens bear the loss.

A doubled BOS or EOS, a missing template or a lost question is seen here in a second, elsewhere in a week.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from caldpo.data.end_tokens import trained_ends
from caldpo.data.tokenize import TokenizedSplit

HEAD, TAIL = 24, 24  # tokens shown of each end of a text
LOSS_STYLE = "bold green"


def print_preview(split: TokenizedSplit, tokenizer: PreTrainedTokenizerBase, count: int, console: Console) -> None:
    """Print the first ``count`` pairs of a split, each response token in brackets, long texts elided."""
    shown = split.pairs[:count]
    if not shown:
        return
    ends = trained_ends(tokenizer)
    heading = Text("Tokenised pairs: the prompt as text, tokens that bear the loss in ")
    console.print(heading.append("[brackets]", LOSS_STYLE))
    for pair in shown:
        console.print(Text(f"pair {pair.index} ({pair.origin})", style="bold"))
        cut = pair.index in split.cut_prompts
        line = _line("prompt", pair.prompt_ids, "cut from the left" if cut else "")
        _append(line, pair.prompt_ids, 0, tokenizer, bears_loss=False)
        console.print(line, soft_wrap=True)
        for name, ids in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
            cut = ids[-1] not in ends
            line = _line(name, ids, "cut from the right" if cut else "")
            # The last prompt token as context: alone, a text would lose its leading space in some tokenizers.
            _append(line, pair.prompt_ids[-1:] + ids, 1, tokenizer, bears_loss=True)
            console.print(line, soft_wrap=True)


def pieces(ids: Sequence[int], start: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text that each token from ``start`` on adds to those before it.

    A token without readable text of its own (one byte of a longer character, a space that decoding swallows)
    is given by its name in the vocabulary. Control characters are escaped: data must not drive the terminal.
    """
    result = []
    before = _decode(tokenizer, ids[:start])
    for place in range(start, len(ids)):
        text = _decode(tokenizer, ids[: place + 1])
        added = text[len(before) :] if text.startswith(before) else ""
        if not added or "\ufffd" in added:
            added = str(tokenizer.convert_ids_to_tokens(ids[place]))
        result.append("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in added))
        before = text
    return result


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _line(name: str, ids: Sequence[int], note: str) -> Text:
    return Text.assemble((f"  {name:<8} ", "bold"), f"{len(ids)} tokens{', ' if note else ''}{note}: ")


def _append(
    line: Text, ids: Sequence[int], start: int, tokenizer: PreTrainedTokenizerBase, *, bears_loss: bool
) -> None:
    """Add the tokens from ``start`` on to ``line``, without the middle of a long text."""

    def add(texts: list[str]) -> None:
        line.append("".join(f"[{t}]" if bears_loss else t for t in texts), LOSS_STYLE if bears_loss else "dim")

    left_out = len(ids) - start - HEAD - TAIL
    if left_out <= 0:
        add(pieces(ids, start, tokenizer))
        return
    add(pieces(ids[: start + HEAD], start, tokenizer))
    line.append(f" ... {left_out} tokens ... ", "italic")
    add(pieces(ids[-TAIL - 1 :], 1, tokenizer))
