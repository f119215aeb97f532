"""Tokenise prompts and sample responses of the policy and of its reference, with log-ratios and true rewards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from caldpo.data.pair import TokenizedPair
from caldpo.data.raw_row import RowError
from caldpo.data.tokenize import encode_prompt
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy, Role
from caldpo.evaluation.evaluation_cache import Sampling
from caldpo.generation.generation_checks import PromptContent


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer, its token ids, and the data's preferred response if it has one."""

    content: PromptContent
    ids: list[int]
    chosen: str | None = None


@dataclass(frozen=True)
class Response:
    """One response to a prompt."""

    role: Role  # of the model that wrote it
    sample: int  # its number among those to the same prompt, from 0
    text: str  # without special tokens
    tokens: int  # with its end token
    ended: bool  # whether it has an end token; otherwise it was truncated
    log_ratio: float | None  # log pi - log pi_ref at temperature 1, nats, summed over its tokens
    true_reward: float | None  # in the data's units, if the data knows it


# ---- prompts


def find_form(policy: EvaluatedPolicy, as_chat: bool | None) -> tuple[bool, str]:
    """Tell whether a text becomes a user's turn in the chat template, or is used unchanged, and why, in a line.

    ``as_chat`` decides, else the data's prompts, else the tokenizer.

    Raises:
        CaldpoError: it is a turn, and there is no chat template.
    """
    if as_chat is not None:
        turns, reason = as_chat, f"as_chat={str(as_chat).lower()}"
    elif policy.has_data:
        turns = any(not isinstance(pair.prompt, str) for pair in policy.data.test_sources)
        reason = f"the data's prompts are {'conversations' if turns else 'plain text'}"
    else:
        turns = policy.tokenizer.chat_template is not None
        reason = f"the tokenizer has {'a' if turns else 'no'} chat template"
    if turns:
        _require_template(policy, key="as_chat")
    form = "a user's turn in the chat template" if turns else "used unchanged"
    return turns, f"a text is {form}: {reason}"


def as_prompt(policy: EvaluatedPolicy, content: PromptContent) -> Prompt:
    """Tokenise text as it is, or a conversation in the chat template, as in training but without truncation.

    Raises:
        CaldpoError: the template refuses the conversation, or there is none; there are no tokens.
    """
    if not isinstance(content, str):
        _require_template(policy, key="prompts")
    try:
        return Prompt(content, encode_prompt(content, policy.tokenizer))
    except RowError as error:
        raise CaldpoError(str(error), key="prompts", value=repr(content)[:80]) from error


def _require_template(policy: EvaluatedPolicy, key: str) -> None:
    if policy.tokenizer.chat_template is None:
        raise CaldpoError(
            "the policy's tokenizer has no chat template to write a conversation with",
            key=key,
            remedy="give prompts as text, with as_chat=false",
        )


# ---- responses


def respond(
    policy: EvaluatedPolicy, prompts: Sequence[Prompt], sampling: Sampling, *, compare: bool
) -> list[list[Response]]:
    """Sample ``sampling.samples`` responses of the policy to each prompt, then as many of the reference.

    ``sampling.prompts`` is ignored. Without ``compare`` there is no reference: no responses of it, and no log-ratios.

    Raises:
        CaldpoError: a prompt fills the model's context.
    """
    repeated = [prompt for prompt in prompts for _ in range(sampling.samples)]
    ids_of: dict[Role, list[list[int]]] = {"policy": _draw(policy, "policy", repeated, sampling)}
    log_ratios: dict[Role, list[float]] = {}
    if compare:
        ids_of["reference"] = _draw(policy, "reference", repeated, sampling)
        log_ratios = _log_ratios(policy, repeated, ids_of)

    def response(prompt: Prompt, role: Role, index: int, sample: int) -> Response:
        ids = ids_of[role][index]
        text = policy.decode(ids)
        log_ratio = log_ratios[role][index] if log_ratios else None
        reward = true_reward(policy, prompt.content, text)
        return Response(role, sample, text, len(ids), ids[-1] in policy.ends, log_ratio, reward)

    return [
        [response(prompt, role, start + sample, sample) for role in ids_of for sample in range(sampling.samples)]
        for start, prompt in zip(range(0, len(repeated), sampling.samples), prompts, strict=True)
    ]


def _draw(policy: EvaluatedPolicy, role: Role, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[int]]:
    """Sample one response to each prompt, token ids with the end token, as long as the model has positions for."""
    with policy.model_of(role) as model:
        context = getattr(model.config, "max_position_embeddings", None)
    longest = max(len(prompt.ids) for prompt in prompts)
    if isinstance(context, int):
        if longest >= context:
            raise CaldpoError(
                f"the prompt has {longest:,} tokens, and the model's context is {context:,}, the response included",
                key="prompts",
                remedy="shorten it",
            )
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, context - longest))
    return policy.draw(role, [prompt.ids for prompt in prompts], sampling)


def true_reward(policy: EvaluatedPolicy, content: PromptContent, text: str) -> float | None:
    """Return the data's true reward of a response; None if it is unknown."""
    if not policy.has_data or policy.data.oracle is None or not isinstance(content, str):
        return None
    with suppress(KeyError):  # a table of rewards has rewards only for its own prompts
        return float(policy.data.oracle(content, text))
    return None


def _log_ratios(
    policy: EvaluatedPolicy, prompts: Sequence[Prompt], ids_of: dict[Role, list[list[int]]]
) -> dict[Role, list[float]]:
    pairs = [
        TokenizedPair(prompt.ids, by_policy, by_reference, None, None, i, "")
        for i, (prompt, by_policy, by_reference) in enumerate(
            zip(prompts, ids_of["policy"], ids_of["reference"], strict=True)
        )
    ]
    of_policy, of_reference = policy.logps("policy", pairs) - policy.logps("reference", pairs)
    return {"policy": of_policy.tolist(), "reference": of_reference.tolist()}
