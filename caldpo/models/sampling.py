"""Sampling responses from a causal language model, reproducibly and without touching global generators.

Samples are of the model's whole distribution at a temperature: none of the checkpoint's own generation settings (top-p,
penalties, beams, ...) has a part in them. A response ends with the first token of :mod:`caldpo.data.end_tokens`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from caldpo.data.end_tokens import end_tokens, named
from caldpo.distributed.fsdp import is_sharded
from caldpo.errors import CaldpoError, one_line
from caldpo.models.compilation import uncompiled
from caldpo.models.eval_mode import evaluating
from caldpo.models.generation_settings import listed, unused_settings, without_own_settings
from caldpo.models.left_padding import forget, left_padded, prompt_batches
from caldpo.utils.finite_checks import not_finite_error
from caldpo.utils.out_of_memory import is_out_of_memory

LEAST_TEMPERATURE = 1e-6
"""Below it the likeliest token is taken: float32 logits do not tell more apart."""


def reference_seed(seed: int) -> int:
    """The seed of the reference's samples where the policy's have ``seed``.

    With one seed for both, similar models draw the same words, and whoever is better wins more often than independent
    samples would say.
    """
    return random.Random(f"reference {seed}").getrandbits(31)


def sampling_notes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a user of the checkpoint might expect otherwise of samples, a line each; empty where there is nothing."""
    unused, ends = unused_settings(model), end_tokens(tokenizer, model)
    lines = []
    if unused:
        asked = f"generation_config.json asks for {listed(unused)}"
        lines.append(f"{asked}: not used, samples are of the plain distribution")
    if len(ends) > 1:
        lines.append(f"a response ends with the first of {named(tokenizer, ends)}")
    return lines


def plain_settings(max_new_tokens: int, temperature: float, ends: Sequence[int], pad: int | None) -> GenerationConfig:
    """Settings of plain sampling from the whole distribution; at temperature 0 of the likeliest token.

    Args:
        max_new_tokens: longest response, tokens.
        temperature: divides the logits.
        ends: tokens that end a response.
        pad: fills up what follows an end.
    """
    common: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": list(ends),
        "pad_token_id": ends[0] if pad is None else pad,
        "num_beams": 1,
        "use_cache": True,
    }
    if temperature < LEAST_TEMPERATURE:
        return GenerationConfig(do_sample=False, **common)
    # transformers' own default of top_k is 50
    return GenerationConfig(do_sample=True, temperature=float(temperature), top_k=0, top_p=1.0, **common)


@torch.no_grad()
def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int = 128,
    device: torch.device | None = None,
    ends: Sequence[int] | None = None,
    whose: str = "the model's",
    names: Sequence[str] = (),
    done: Callable[[int], object] = lambda responses: None,
) -> list[list[int]]:
    """One response per prompt, as token ids up to and including its end token (absent when the length ran out).

    Args:
        prompts: token ids of each prompt, as the model was trained on them.
        temperature: of plain sampling from the whole distribution; 0 takes the likeliest token.
        seed: of the sampling; global generators are left as they were.
        batch_size: prompts at a time; another one draws other samples.
        device: where the model computes, if that is not where its weights lie.
        ends: tokens that end a response; None takes the model's own.
        whose: logits they are, for an error.
        names: of the prompts, for an error.
        done: told after each batch how many responses it was of, for a progress bar.

    Raises:
        CaldpoError: logits are not finite, naming the prompts.
    """
    device = device or model.device
    devices = [device] if device.type == "cuda" else []
    settings = plain_settings(max_new_tokens, temperature, ends or end_tokens(tokenizer, model), tokenizer.pad_token_id)
    responses: dict[int, list[int]] = {}
    bad: dict[int, int] = {}
    with evaluating(model), uncompiled(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        synced = is_sharded(model)
        for places in prompt_batches(
            model, prompts, batch_size, max_new_tokens=max_new_tokens, device=device, synced_gpus=synced
        ):
            found, first_bad = _sample_batch(model, [prompts[i] for i in places], settings, device)
            responses |= dict(zip(places, found, strict=True))
            bad |= {i: at for i, ids, at in zip(places, found, first_bad, strict=True) if at < len(ids)}
            done(len(places))
    if bad:
        first = f"{whose} logits in sampling, from token {min(bad.values()) + 1} of a response on,"
        where = [names[i] if i < len(names) else f"prompt {i + 1}" for i in sorted(bad)]
        raise not_finite_error(first, where, len(prompts), "prompts")
    return [responses[i] for i in range(len(prompts))]


def _sample_batch(
    model: PreTrainedModel, prompts: list[list[int]], settings: GenerationConfig, device: torch.device
) -> tuple[list[list[int]], list[int]]:
    """Responses, and at which token of each the logits were not finite first: beyond its end where they never were."""
    pad, ends = settings.pad_token_id, settings.eos_token_id
    assert isinstance(pad, int)
    assert isinstance(ends, list)
    ids, mask = left_padded(prompts, pad, device)
    watch = _Watch(len(prompts), device)
    with without_own_settings(model) as base:
        forget(base, device)
        kind: Any = type(base)  # the instance's own generate may be a program that came with the checkpoint
        try:
            out = kind.generate(
                base,
                input_ids=ids,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=LogitsProcessorList([watch]),
                synced_gpus=is_sharded(model),  # ranks with parts of the weights go on until the last of them is done
            )[:, ids.shape[1] :].tolist()
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            raise _cannot_generate(base, error) from error
    # the first end token ends a response; what follows is padding, whatever its id
    cut = [next((row[: at + 1] for at, token in enumerate(row) if token in ends), row) for row in out]
    return cut, watch.first_bad.tolist()


def _cannot_generate(model: PreTrainedModel, error: Exception) -> CaldpoError:
    """Some types fail in transformers' own ``generate`` (5.24: kimi_linear, bailing_hybrid), and train all the same."""
    return CaldpoError(
        f"transformers cannot generate with this {type(model).__name__}: {one_line(error)}",
        key="callbacks.samples.prompts",
        remedy="train with callbacks.samples.prompts=0 callbacks.oracle.prompts=0, and measure by suites that draw no"
        " samples (preference, displacement)",
    )


class _Watch(LogitsProcessor):
    """Looks whether the model's logits are finite, without waiting for the device, and keeps drawing from failing.

    A vocabulary may have entries of -inf, which are never drawn; no entry may be NaN or +inf.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.step = 0
        self.first_bad = torch.full((rows,), torch.iinfo(torch.int64).max, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bad = ~scores.amax(dim=-1).isfinite()  # the largest of some is NaN where any is
        self.first_bad = torch.where(bad, self.first_bad.clamp_max(self.step), self.first_bad)
        self.step += 1
        return torch.where(bad[:, None], 0, scores)
