"""Responses that begin with their whole prompt, which would then stand twice in each sequence and bear loss."""

from __future__ import annotations

from dataclasses import replace

from caldpo.data.columns import CUT
from caldpo.data.formats.hh import is_transcript
from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import RowError

# characters from which on two answers that begin with all of a prompt are no coincidence ("Hello", "Hello there!")
_SURELY = 20


def without_prompt(pair: PreferencePair) -> PreferencePair:
    """The pair without the prompt at the beginning of its responses, where all of them have it there.

    Conversations say where a prompt ends; this is about text alone.

    Raises:
        RowError: the prompt is too short to tell whether it was repeated.
    """
    if not isinstance(pair.prompt, str) or not pair.prompt.strip():
        return pair
    sides = (pair.chosen,) if pair.demonstration else (pair.chosen, pair.rejected)
    rests = [_after(pair.prompt, side) for side in sides]
    if None in rests:
        return pair
    if not is_transcript(pair.prompt) and len(pair.prompt.strip()) < _SURELY:
        raise RowError("every response begins with the whole prompt, which would stand twice (cut it from them)")
    cut = [str(rest) for rest in rests]
    return replace(
        pair, chosen=cut[0], rejected=pair.rejected if pair.demonstration else cut[1], remarks=(*pair.remarks, CUT)
    )


def _after(prompt: str, response: str) -> str | None:
    """What follows the prompt in a response that begins with it; None of another one."""
    core, text = prompt.strip(), response.lstrip()
    rest = text[len(core) :]
    if not text.startswith(core) or not rest.strip() or (core[-1].isalnum() and rest[0].isalnum()):
        return None  # "Do" does not stand in "Done"
    return rest.removeprefix(prompt[len(prompt.rstrip()) :])
