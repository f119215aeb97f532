"""Compute the ground-truth reward of a chain of sums, which can be checked by hand.

::

    reward = (right steps / steps + answer  -  0.5 * faults  -  CENTRE) / SCALE

* a step is right where it reads exactly as in the correct chain: ``a + b = c`` with the true sum so far, the next term
  and their true sum. The first sentence of that form is compared with the first step, and so on. A step that is
  missing is not right, and a chain that goes on from a wrong sum is wrong from there on.
* answer: 1 where the first ``answer c`` names the true sum, otherwise 0.
* faults: sentences of neither form (an unfinished last one and an empty response among them), steps beyond those that
  are needed, steps after the answer, and further answers. At most four are counted, which bounds the reward.

``CENTRE`` and ``SCALE`` make mean and variance about 0 and 1 over the responses of the preference data (off-policy).
"""

from __future__ import annotations

from caldpo.environments.arithmetic.chains import ANSWER, EQUALS, steps
from caldpo.environments.arithmetic.sums import PLUS, STOP, parse_sum

FAULT_COST = 0.5
MOST_FAULTS = 4
CENTRE = 1.83
SCALE = 0.27


def chain_reward(prompt: str, response: str) -> float:
    """Return the ground-truth reward of ``response``, in standard deviations of the preference data's responses.

    Defined for any two strings: a prompt of another kind has no step and no answer, so that only the costs remain.
    """
    asked = parse_sum(prompt)
    *needed, answer = steps(asked) if asked else [[]]
    right = faults = written = 0
    answered: list[str] | None = None
    for words in _sentences(response):
        if _is_step(words) and answered is None and written < len(needed):
            right += words == needed[written]
            written += 1
        elif _is_answer(words) and answered is None and needed:
            answered = words
        else:
            faults += 1
    share = right / len(needed) if needed else 0.0
    raw = share + (answered is not None and answered == answer) - FAULT_COST * min(faults, MOST_FAULTS)
    return (raw - CENTRE) / SCALE


def is_correct(prompt: str, response: str) -> bool:
    """Whether the response is the correct chain and nothing else."""
    asked = parse_sum(prompt)
    return asked is not None and _sentences(response) == steps(asked)


def _is_step(words: list[str]) -> bool:
    return len(words) == 5 and (words[1], words[3]) == (PLUS, EQUALS) and all(w.isdecimal() for w in words[::2])


def _is_answer(words: list[str]) -> bool:
    return len(words) == 2 and words[0] == ANSWER and words[1].isdecimal()


def _sentences(response: str) -> list[list[str]]:
    """Split words at full stops; words after the last one, or none at all, are an empty sentence, which is a fault."""
    sentences: list[list[str]] = [[]]
    for word in response.split():
        if word == STOP:
            sentences.append([])
        else:
            sentences[-1].append(word)
    unfinished = sentences.pop()
    return [*sentences, []] if unfinished or not sentences else sentences
