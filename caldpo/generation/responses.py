"""Responses of the policy and of its reference to the same prompts, and what can be said of each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from caldpo.data.pair import TokenizedPair
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy, Who
from caldpo.evaluation.evaluation_cache import Sampling
from caldpo.generation.user_prompts import Asked


@dataclass(frozen=True)
class Prompt:
    """What is answered.

    Args:
        asked: text as it is taken, or the conversation.
        ids: its tokens.
        chosen: the response that people preferred, where the data has one.
    """

    asked: Asked
    ids: list[int]
    chosen: str | None = None


@dataclass(frozen=True)
class Response:
    """One response.

    Args:
        who: whose.
        sample: its number among those to the same prompt, from 0.
        text: without special tokens.
        tokens: its length, with its end token.
        ended: whether it has one; otherwise the length ran out.
        log_ratio: ``log pi(response) - log pi_ref(response)`` at temperature 1, nats, summed over its tokens.
        true_reward: in the data's units, where the data knows it.
    """

    who: Who
    sample: int
    text: str
    tokens: int
    ended: bool
    log_ratio: float | None
    true_reward: float | None


def respond(
    subject: EvaluatedPolicy, prompts: Sequence[Prompt], how: Sampling, *, compare: bool
) -> list[list[Response]]:
    """``how.samples`` responses of the policy to each prompt, and after them as many of the reference.

    Args:
        subject: whose policy and reference.
        prompts: any; ``how.prompts`` is not looked at.
        how: length, temperature and seed; the reference's seed is derived from it.
        compare: False leaves the reference alone: none of its responses, no log-ratios.

    Raises:
        CaldpoError: a prompt fills what the model reads at most.
    """
    repeated = [prompt for prompt in prompts for _ in range(how.samples)]
    both: dict[Who, list[list[int]]] = {"policy": draw(subject, "policy", repeated, how)}
    ratios: dict[Who, list[float]] = {}
    if compare:
        both["reference"] = draw(subject, "reference", repeated, how)
        ratios = _log_ratios(subject, repeated, both)
    return [
        [
            _response(subject, prompt, who, sample, ids[at + sample], ratios[who][at + sample] if ratios else None)
            for who, ids in both.items()
            for sample in range(how.samples)
        ]
        for at, prompt in zip(range(0, len(repeated), how.samples), prompts, strict=True)
    ]


def draw(subject: EvaluatedPolicy, who: Who, prompts: Sequence[Prompt], how: Sampling) -> list[list[int]]:
    """One response to each prompt, token ids up to and including the end token, as long as the model has positions for.

    Raises:
        CaldpoError: a prompt fills what the model reads at most.
    """
    with subject.model(who) as model:
        longest = min(how.max_new_tokens, _room(model, prompts))
    return subject.draw(who, [prompt.ids for prompt in prompts], replace(how, max_new_tokens=longest))


def true_reward(subject: EvaluatedPolicy, asked: Asked, text: str) -> float | None:
    """The data's true reward of a response; None where it knows none."""
    if not subject.has_data or subject.data.oracle is None or not isinstance(asked, str):
        return None
    with suppress(KeyError):  # a table of rewards knows its own prompts alone
        return float(subject.data.oracle(asked, text))
    return None


def _response(
    subject: EvaluatedPolicy, prompt: Prompt, who: Who, sample: int, ids: list[int], log_ratio: float | None
) -> Response:
    text = subject.decode(ids)
    ended = ids[-1] in subject.ends
    return Response(who, sample, text, len(ids), ended, log_ratio, true_reward(subject, prompt.asked, text))


def _log_ratios(
    subject: EvaluatedPolicy, prompts: Sequence[Prompt], both: dict[Who, list[list[int]]]
) -> dict[Who, list[float]]:
    pairs = [
        TokenizedPair(prompt.ids, mine, theirs, None, None, i, "")
        for i, (prompt, mine, theirs) in enumerate(zip(prompts, both["policy"], both["reference"], strict=True))
    ]
    mine, theirs = subject.logps("policy", pairs) - subject.logps("reference", pairs)
    return {"policy": mine.tolist(), "reference": theirs.tolist()}


def _room(model: PreTrainedModel, prompts: Sequence[Prompt]) -> int:
    """Tokens that a response may have before the model has no position left for the next."""
    longest = max(len(prompt.ids) for prompt in prompts)
    most = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(most, int):
        return longest + 2**31
    if longest >= most:
        raise CaldpoError(
            f"the prompt has {longest:,} tokens, and the model reads {most:,} at most, its response among them",
            key="prompts",
            remedy="shorten it",
        )
    return most - longest
