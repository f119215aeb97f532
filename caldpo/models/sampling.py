"""Sample responses from a causal language model, reproducibly and without touching global generators.

Samples are of the model's full distribution at a temperature: none of the checkpoint's own generation settings (top-p,
penalties, beams, ...) has an effect.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from caldpo.errors import CaldpoError, one_line
from caldpo.models.adapted_policy import base_model
from caldpo.models.compilation import uncompiled
from caldpo.models.generation_settings import format_settings, unused_settings
from caldpo.models.model_forward import evaluating
from caldpo.models.prompt_batching import generate, prompt_batches
from caldpo.utils.devices import is_out_of_memory
from caldpo.utils.finite_checks import not_finite_error

LEAST_TEMPERATURE = 1e-6
"""Below it the likeliest token is taken: float32 logits have no finer differences."""


def reference_seed(seed: int) -> int:
    """Derive the seed of the reference's samples from the policy's.

    With one seed for both, similar models draw the same words, and the better one wins more often than with independent
    samples.
    """
    return random.Random(f"reference {seed}").getrandbits(31)


def token_names(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Name tokens as ``</s> (2), <|im_end|> (32001)``."""
    names = tokenizer.convert_ids_to_tokens(list(ids))
    return ", ".join(f"{'unknown' if name is None else name} ({token})" for name, token in zip(names, ids, strict=True))


def sampling_notes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> list[str]:
    """Note, in a line each, where samples differ from what the checkpoint's settings suggest."""
    lines = []
    if unused := unused_settings(model):
        settings = f"generation_config.json asks for {format_settings(unused)}"
        lines.append(f"{settings}: not used, samples are of the plain distribution")
    if len(ends) > 1:
        lines.append(f"a response ends with the first of {token_names(tokenizer, ends)}")
    return lines


def plain_settings(max_new_tokens: int, temperature: float, ends: Sequence[int], pad: int | None) -> GenerationConfig:
    """Configure plain sampling from the full distribution; at temperature 0 of the likeliest token."""
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
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int = 128,
    device: torch.device | None = None,
    whose: str = "the model's",
    names: Sequence[str] = (),
    on_batch: Callable[[int], object] = lambda responses: None,
) -> list[list[int]]:
    """Sample one response per prompt: token ids up to and including its end token (absent when the length ran out).

    Args:
        model: in any mode; sharded over ranks, all of which call, or not.
        tokenizer: its padding token fills batches.
        prompts: token ids of each prompt, as the model was trained on them.
        ends: tokens that end a response, see :func:`caldpo.data.end_tokens.end_tokens`.
        temperature: of plain sampling from the full distribution; 0 takes the likeliest token.
        seed: of the sampling; global generators are left unchanged.
        batch_size: prompts at a time; another one draws other samples.
        device: where the model computes, if its weights are elsewhere.
        whose: owner of the logits, for an error.
        names: of the prompts, for an error.
        on_batch: called after each batch with its number of responses, for a progress bar.

    Raises:
        CaldpoError: logits are non-finite, naming the prompts.
    """
    device = device or model.device
    devices = [device] if device.type == "cuda" else []
    settings = plain_settings(max_new_tokens, temperature, ends, tokenizer.pad_token_id)
    responses: dict[int, list[int]] = {}
    bad: dict[int, int] = {}
    with evaluating(model), uncompiled(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        # ranks with shards of the weights generate until the last of them is done
        synced = {"synced_gpus": isinstance(model, FSDPModule)}
        for rows in prompt_batches(model, prompts, batch_size, max_new_tokens=max_new_tokens, device=device, **synced):
            sampled, first_bad = _sample_batch(model, [prompts[i] for i in rows], settings, device, **synced)
            responses |= dict(zip(rows, sampled, strict=True))
            bad |= {i: at for i, ids, at in zip(rows, sampled, first_bad, strict=True) if at < len(ids)}
            on_batch(len(rows))
    if bad:
        subject = f"{whose} logits in sampling, from token {min(bad.values()) + 1} of a response on,"
        where = [names[i] if i < len(names) else f"prompt {i + 1}" for i in sorted(bad)]
        raise not_finite_error(subject, where, len(prompts), "prompts")
    return [responses[i] for i in range(len(prompts))]


def _sample_batch(
    model: PreTrainedModel,
    prompts: list[list[int]],
    settings: GenerationConfig,
    device: torch.device,
    *,
    synced_gpus: bool,
) -> tuple[list[list[int]], list[int]]:
    """Sample responses; also return the first token of each with non-finite logits, past its end if there is none."""
    ends = settings.eos_token_id
    assert isinstance(ends, list)
    check = _FiniteCheck(len(prompts), device)
    keywords: dict[str, Any] = {"logits_processor": LogitsProcessorList([check]), "synced_gpus": synced_gpus}
    try:
        out = generate(model, prompts, settings, device, **keywords)[:, max(map(len, prompts)) :].tolist()
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        # of transformers' own generate, as for kimi_linear and bailing_hybrid (5.24), which train
        raise CaldpoError(
            f"transformers cannot generate with this {type(base_model(model)).__name__}: {one_line(error)}",
            key="callbacks.samples.prompts",
            remedy="train with callbacks.samples.prompts=0 callbacks.oracle.prompts=0, and measure by suites that draw"
            " no samples (preference, displacement)",
        ) from error
    # the first end token ends a response; what follows is padding, whatever its id
    cut = [next((row[: at + 1] for at, token in enumerate(row) if token in ends), row) for row in out]
    return cut, check.first_bad.tolist()


class _FiniteCheck(LogitsProcessor):
    """Records where logits are non-finite, without waiting for the device, and keeps sampling from failing.

    A vocabulary may have entries of -inf, which are never drawn; no entry may be NaN or +inf.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.step = 0
        self.first_bad = torch.full((rows,), torch.iinfo(torch.int64).max, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bad = ~scores.amax(dim=-1).isfinite()  # the maximum is NaN where any entry is
        self.first_bad = torch.where(bad, self.first_bad.clamp_max(self.step), self.first_bad)
        self.step += 1
        return torch.where(bad[:, None], 0, scores)
