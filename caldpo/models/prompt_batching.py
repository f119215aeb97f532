"""Batch prompts such that each is answered as it is alone.

Models with a state that runs from token to token (RWKV, RecurrentGemma) read the padding on a prompt's left as text,
and would answer otherwise than alone; no configuration tells, so that each model is tried once.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from caldpo.models.adapted_policy import base_model
from caldpo.models.generation_settings import without_own_settings
from caldpo.models.model_forward import evaluating, frequency_change_length, use_rowwise_frequencies
from caldpo.models.model_probes import difference, random_ids, tolerance
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.stream_console import Console

Batching = Literal["any", "equal lengths", "one at a time"]
"""Which prompts a model answers together as it does alone."""

_TRIAL_LENGTHS = (6, 3, 3)  # of the prompts that are tried; two are equal
_TRIAL_STEPS = 2  # new tokens: one from the prompt, one from the cache
_trials: weakref.WeakKeyDictionary[Any, Batching] = weakref.WeakKeyDictionary()  # a cache: one trial a model


def prompt_batches(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    size: int,
    *,
    max_new_tokens: int,
    device: torch.device,
    **generation: Any,
) -> list[list[int]]:
    """Batch prompts, as indices into ``prompts``, such that each is answered as it is alone.

    The model, in evaluation mode, is tried once; the result is cached as long as it exists. ``generation``: keywords
    of ``generate`` that it always needs, such as ``synced_gpus``.
    """
    use_rowwise_frequencies(model)
    lengths = [len(prompt) for prompt in prompts]
    batching: Batching = "any"
    if len(set(lengths)) > 1 and size > 1:
        batching = prompt_batching(model, device=device, **generation)
        if batching == "any" and _has_position_temperature(model, max(lengths) + max_new_tokens):
            batching = "equal lengths"
    if batching == "one at a time":
        return [[index] for index in range(len(prompts))]
    order = list(range(len(prompts)))
    groups = [order]
    if batching == "equal lengths":
        order.sort(key=lengths.__getitem__)
        groups = [list(group) for _, group in groupby(order, key=lengths.__getitem__)]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def padded_batch_size(model: PreTrainedModel, size: int, *, device: torch.device) -> int:
    """Rows of a batch that other code pads: ``size``, or 1 where rows would not be as they are alone."""
    apart = frequency_change_length(model) is not None or prompt_batching(model, device=device) != "any"
    return 1 if apart else size


def prompt_batching(model: PreTrainedModel, *, device: torch.device, **generation: Any) -> Batching:
    """Find out which prompts get the logits together that they get alone; see :func:`prompt_batches`."""
    if model not in _trials:
        _trials[model] = _try_batching(model, device, generation)
        if _trials[model] != "any" and is_first_rank():
            name = type(base_model(model)).__name__
            line = f"generation: prompts of {_trials[model]}, since this {name} reads the padding on their left"
            Console().print(line.replace("of one", "one"), soft_wrap=True, highlight=False, markup=False)
    return _trials[model]


def _try_batching(model: PreTrainedModel, device: torch.device, generation: dict[str, Any]) -> Batching:
    prompts = [random_ids(base_model(model), length, seed) for seed, length in enumerate(_TRIAL_LENGTHS)]
    candidates: dict[Batching, tuple[int, ...]] = {"any": (0, 1, 2), "equal lengths": (1, 2)}
    with evaluating(model):
        try:
            alone = [_first_logits(model, [prompt], device, generation)[0] for prompt in prompts]
        except Exception:  # if the model cannot generate at all, sampling from real prompts reports it
            return "one at a time"
        for batching, indices in candidates.items():
            try:
                together = _first_logits(model, [prompts[index] for index in indices], device, generation)
            except Exception:  # of any kind in a model's own code; smaller batches remain
                continue
            pairs = zip(together, (alone[index] for index in indices), strict=True)
            if all(_same(model, *pair) for pair in pairs):
                return batching
    return "one at a time"


def _same(model: PreTrainedModel, logits: Tensor, expected: Tensor) -> bool:
    """Whether logits agree, up to the step where rounding of equal logits makes another token the likeliest."""
    for one, other in zip(logits, expected, strict=False):
        if difference(model, one[None], other[None]) > tolerance(model):
            return False
        if int(one.argmax()) != int(other.argmax()):
            break
    return True


def _first_logits(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], device: torch.device, generation: dict[str, Any]
) -> list[Tensor]:
    """Compute logits of the first new tokens of each prompt, ``[steps, vocabulary]``, in greedy decoding."""
    settings = GenerationConfig(
        max_new_tokens=_TRIAL_STEPS,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return list(torch.stack(generate(model, prompts, settings, device, **generation).logits, dim=1))


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    device: torch.device,
    **keywords: Any,
) -> Any:
    """Call transformers' ``generate`` for prompts padded on the left, without the checkpoint's own settings."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[settings.pad_token_id] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    with without_own_settings(model) as base:
        # RecurrentGemma (transformers 5.24) keeps the state of its convolutions in its layers, and a prompt of one
        # token continues from what the last call left; a forward without a cache clears it
        if getattr(base, "_is_stateful", False):
            base(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=False)
        kind: Any = type(base)  # the instance's own generate may be a program that came with the checkpoint
        return kind.generate(base, input_ids=ids, attention_mask=mask, generation_config=settings, **keywords)


def _has_position_temperature(model: PreTrainedModel, length: int) -> bool:
    """Whether attention has another temperature at positions up to ``length``: Llama 4 counts padding along."""
    config: Any = base_model(model).config.get_text_config()
    return bool(getattr(config, "attn_temperature_tuning", False)) and length >= getattr(config, "floor_scale", 0)
