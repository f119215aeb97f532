"""Which prompts a model may answer together: those of one length where it reads the padding on their left.

Models with a state that runs from token to token (RWKV, RecurrentGemma) take padding for text, and would go on from
other states than alone. Nothing says so but trying.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from caldpo.models.adapters import base_model
from caldpo.models.eval_mode import evaluating
from caldpo.models.generation_settings import without_own_settings
from caldpo.models.model_probes import difference, random_ids, tolerance
from caldpo.models.rope_frequencies import frequencies_by_row, same_up_to
from caldpo.utils.collectives import is_first_rank

_LENGTHS = (6, 3, 3)  # of the prompts that are tried; two have the same
_STEPS = 2  # new tokens: one from the prompt, one from the cache
_known: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

ANY, EQUAL, ALONE = "any", "equal lengths", "one at a time"


def prompt_batches(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    size: int,
    *,
    max_new_tokens: int,
    device: torch.device,
    **generation: Any,
) -> list[list[int]]:
    """Places of the prompts in ``prompts``, batch by batch, such that each is answered as it is alone.

    Args:
        model: in evaluation mode. It is tried once; what was found is remembered as long as the model is there.
        prompts: token ids.
        size: prompts of a batch at most.
        max_new_tokens: of the responses.
        device: where the model computes.
        generation: keywords of ``generate`` that the model needs wherever it is called, such as ``synced_gpus``.
    """
    frequencies_by_row(model)
    lengths = [len(prompt) for prompt in prompts]
    if len(set(lengths)) < 2 or size == 1:
        together = ANY
    else:
        together = prompts_together(model, device=device, **generation)
        if together == ANY and _outgrows(model, max(lengths) + max_new_tokens):
            together = EQUAL
    if together == ALONE:
        return [[place] for place in range(len(prompts))]
    order = list(range(len(prompts)))
    groups = [order]
    if together == EQUAL:
        order.sort(key=lengths.__getitem__)
        groups = [list(group) for _, group in groupby(order, key=lengths.__getitem__)]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def foreign_batch(model: PreTrainedModel, size: int, *, device: torch.device) -> int:
    """Rows of a batch that somebody else's code pads: ``size``, or 1 where rows would not be as they are alone.

    Args:
        model, device: see :func:`prompt_batches`.
        size: rows that are wanted.
    """
    apart = same_up_to(model) is not None or prompts_together(model, device=device) != ANY
    return 1 if apart else size


def prompts_together(model: PreTrainedModel, *, device: torch.device, **generation: Any) -> str:
    """:data:`ANY`, :data:`EQUAL` or :data:`ALONE`: which prompts get the logits together that they get alone.

    Args:
        model, device, generation: see :func:`prompt_batches`.
    """
    if model not in _known:
        _known[model] = _try(model, device, generation)
        if _known[model] != ANY and is_first_rank():
            name = type(base_model(model)).__name__
            line = f"generation: prompts of {_known[model]}, since this {name} reads the padding on their left"
            Console().print(line.replace("of one", "one"), soft_wrap=True, highlight=False, markup=False)
    return _known[model]


def _try(model: PreTrainedModel, device: torch.device, generation: dict[str, Any]) -> str:
    prompts = [random_ids(base_model(model), length, seed) for seed, length in enumerate(_LENGTHS)]
    with evaluating(model):
        try:
            alone = [_first_logits(model, [prompt], device, generation)[0] for prompt in prompts]
        except Exception:  # if it cannot generate at all, real prompts are going to tell
            return ALONE
        for answer, places in ((ANY, (0, 1, 2)), (EQUAL, (1, 2))):
            try:
                found = _first_logits(model, [prompts[place] for place in places], device, generation)
            except Exception:  # whatever a make of its own raises, smaller batches remain
                continue
            pairs = zip(found, (alone[place] for place in places), strict=True)
            if all(_same(model, *pair) for pair in pairs):
                return answer
    return ALONE


def _same(model: PreTrainedModel, found: Tensor, wanted: Tensor) -> bool:
    """Whether logits agree, up to the step from which other tokens were taken for the same logits, by rounding."""
    for one, other in zip(found, wanted, strict=False):
        if difference(model, one[None], other[None]) > tolerance(model):
            return False
        if int(one.argmax()) != int(other.argmax()):
            break
    return True


def _first_logits(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], device: torch.device, generation: dict[str, Any]
) -> list[Tensor]:
    """Logits of the first new tokens of each prompt, ``[steps, vocabulary]``, the likeliest being taken."""
    settings = GenerationConfig(
        max_new_tokens=_STEPS,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids, mask = left_padded(prompts, 0, device)
    with without_own_settings(model) as base:
        forget(base, device)
        kind: Any = type(base)
        out = kind.generate(base, input_ids=ids, attention_mask=mask, generation_config=settings, **generation)
    return list(torch.stack(out.logits, dim=1))


def forget(model: PreTrainedModel, device: torch.device) -> None:
    """Clear the state that a model keeps between two calls of ``generate``.

    RecurrentGemma (transformers 5.24) keeps that of its convolutions in its layers, and a prompt of one token goes on
    from what the last call left there. A forward without a cache lets it go.
    """
    if getattr(model, "_is_stateful", False):
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=False)


def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask of prompts, padding on the left, each ``(prompts, longest)``."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _outgrows(model: PreTrainedModel, length: int) -> bool:
    """Whether attention has another temperature at places that a padded row gets to: Llama 4 counts padding along."""
    config: Any = base_model(model).config.get_text_config()
    return bool(getattr(config, "attn_temperature_tuning", False)) and length >= getattr(config, "floor_scale", 0)
