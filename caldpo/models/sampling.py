"""Sample responses from a causal language model, reproducibly and without touching global generators.

Samples are of the model's full distribution at a temperature: none of the checkpoint's own generation settings (top-p,
penalties, beams, ...) has an effect. Models with a state that runs from token to token (RWKV, RecurrentGemma) read the
padding on a prompt's left as text, and would answer otherwise than alone; no configuration tells, so that each model is
tried once and prompts are batched as it allows.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from rich.console import Console
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
from caldpo.models.generation_settings import format_settings, unused_settings, without_own_settings
from caldpo.models.model_forward import evaluating, frequency_change_length, use_rowwise_frequencies
from caldpo.models.model_probes import difference, random_ids, tolerance
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.devices import is_out_of_memory
from caldpo.utils.finite_checks import not_finite_error

LEAST_TEMPERATURE = 1e-6
"""Below it the likeliest token is taken: float32 logits have no finer differences."""

Batching = Literal["any", "equal lengths", "one at a time"]
"""Which prompts a model answers together as it does alone."""

_TRIAL_LENGTHS = (6, 3, 3)  # of the prompts that are tried; two are equal
_TRIAL_STEPS = 2  # new tokens: one from the prompt, one from the cache
_trials: weakref.WeakKeyDictionary[Any, Batching] = weakref.WeakKeyDictionary()  # a cache: one trial a model


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
    unused = unused_settings(model)
    lines = []
    if unused:
        settings = f"generation_config.json asks for {format_settings(unused)}"
        lines.append(f"{settings}: not used, samples are of the plain distribution")
    if len(ends) > 1:
        lines.append(f"a response ends with the first of {token_names(tokenizer, ends)}")
    return lines


def plain_settings(max_new_tokens: int, temperature: float, ends: Sequence[int], pad: int | None) -> GenerationConfig:
    """Configure plain sampling from the full distribution; at temperature 0 of the likeliest token.

    Args:
        max_new_tokens: longest response, tokens.
        temperature: divides the logits.
        ends: tokens that end a response.
        pad: fills what follows an end.
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
        max_new_tokens: longest response, tokens.
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
    pad, ends = settings.pad_token_id, settings.eos_token_id
    assert isinstance(pad, int)
    assert isinstance(ends, list)
    ids, mask = left_padded(prompts, pad, device)
    check = _FiniteCheck(len(prompts), device)
    with without_own_settings(model) as base:
        clear_state(base, device)
        kind: Any = type(base)  # the instance's own generate may be a program that came with the checkpoint
        try:
            out = kind.generate(
                base,
                input_ids=ids,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=LogitsProcessorList([check]),
                synced_gpus=synced_gpus,
            )[:, ids.shape[1] :].tolist()
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            raise _cannot_generate(base, error) from error
    # the first end token ends a response; what follows is padding, whatever its id
    cut = [next((row[: at + 1] for at, token in enumerate(row) if token in ends), row) for row in out]
    return cut, check.first_bad.tolist()


def _cannot_generate(model: PreTrainedModel, error: Exception) -> CaldpoError:
    """Explain a failure of transformers' own ``generate``, as of kimi_linear and bailing_hybrid (5.24), which train."""
    return CaldpoError(
        f"transformers cannot generate with this {type(model).__name__}: {one_line(error)}",
        key="callbacks.samples.prompts",
        remedy="train with callbacks.samples.prompts=0 callbacks.oracle.prompts=0, and measure by suites that draw no"
        " samples (preference, displacement)",
    )


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

    Args:
        model: in evaluation mode. It is tried once; the result is cached as long as the model exists.
        prompts: token ids.
        size: prompts of a batch at most.
        max_new_tokens: of the responses.
        device: where the model computes.
        generation: keywords of ``generate`` that the model always needs, such as ``synced_gpus``.
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
    ids, mask = left_padded(prompts, 0, device)
    with without_own_settings(model) as base:
        clear_state(base, device)
        kind: Any = type(base)
        out = kind.generate(base, input_ids=ids, attention_mask=mask, generation_config=settings, **generation)
    return list(torch.stack(out.logits, dim=1))


def clear_state(model: PreTrainedModel, device: torch.device) -> None:
    """Clear the state that a model keeps between two calls of ``generate``.

    RecurrentGemma (transformers 5.24) keeps that of its convolutions in its layers, and a prompt of one token continues
    from what the last call left. A forward without a cache clears it.
    """
    if getattr(model, "_is_stateful", False):
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=False)


def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask of prompts, padded on the left, each ``(prompts, longest)``."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _has_position_temperature(model: PreTrainedModel, length: int) -> bool:
    """Whether attention has another temperature at positions up to ``length``: Llama 4 counts padding along."""
    config: Any = base_model(model).config.get_text_config()
    return bool(getattr(config, "attn_temperature_tuning", False)) and length >= getattr(config, "floor_scale", 0)
