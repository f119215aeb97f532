"""Probe a model with a few tokens before it is trained or evaluated.

This project compares log-probs, which have to be a function of prompt and response alone: not of later tokens, of the
other rows of a batch, or of random numbers. Models differ in that and no configuration tells; a few forward passes of a
dozen tokens do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.errors import CaldpoError, one_line
from caldpo.models.adapted_policy import base_model, is_adapted
from caldpo.models.model_forward import (
    NonFiniteLogitsError,
    accepted_names,
    evaluating,
    frequency_change_length,
    use_rowwise_frequencies,
)
from caldpo.utils.devices import is_out_of_memory

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
"""Largest difference of logits by rounding, relative to their spread over the vocabulary. Models compute norms and
rotary frequencies in float32 whatever their dtype."""

HALF_TOLERANCE = 0.05
"""The same in half precision, for the median token: where experts are chosen, rounding changes some by much more."""

_LENGTH, _SHARED, _SHORT = 12, 6, 7  # tokens of a row, of the prefix that two rows share, and of a padded row
_PASSES = 8  # in training mode, of a model that draws random numbers whose effect does not show at once
_HUGE = 1e5  # logits of excluded tokens may be infinite
_MAX_FLOPS = 1e12  # of a probe of two rows of the length where rotary frequencies change: seconds on a CPU


@dataclass(frozen=True)
class ProbeResult:
    """Largest differences between logits that have to be the same, relative to their spread; see :data:`TOLERANCE`."""

    future: float  # before a token that was changed
    batch: float  # between a row alone and in a padded batch with others
    noise: float = 0.0  # between training mode and evaluation mode; 0 where it was not measured


def require_valid_logprobs(
    policy: Any, *, training: bool, max_length: int = 0, dropout: bool = False, key: str = "model"
) -> None:
    """Refuse a model whose log-probs would be wrong.

    Args:
        policy: a causal language model with its weights, with or without adapters. Skipped on the meta device: the
            rank with the weights checks them.
        training: whether it is going to be trained.
        max_length: tokens of the longest sequence; 0: not known.
        dropout: whether noise in training is intended.
        key: configuration key of the model, for the message.

    Raises:
        CaldpoError: it is not causal, its rows are not independent, or it has noise in training that is not intended.
    """
    model = base_model(policy)
    if next(model.parameters()).is_meta:
        return
    _require_known_frequencies(model, max_length)
    with policy.disable_adapter() if is_adapted(policy) else nullcontext():
        try:
            result = probe(model, training=training and not dropout, max_length=max_length)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            raise CaldpoError(
                f"a forward pass of this {type(model).__name__} fails: {one_line(error)}",
                key=key,
                remedy="check that its config.json agrees with its weights, and that this transformers has its code",
            ) from error
    limit = tolerance(model)
    kind = getattr(model.config, "model_type", type(model).__name__)
    name = f"this {type(model).__name__} ({kind})"
    if result.future > limit:
        raise CaldpoError(
            f"{name} is not causal: a later token changes the logits of earlier ones, so that its log-probs see the"
            " tokens that they predict",
            key=key,
            value=kind,
            remedy="choose a decoder-only model; one that also comes as an encoder needs is_decoder in its config.json",
        )
    if result.batch > limit:
        raise CaldpoError(
            f"{name} gives a row other logits in a padded batch than alone (by {result.batch:.1g} of their spread): it"
            " ignores attention_mask",
            key=key,
            value=kind,
            remedy="choose another model",
        )
    if result.noise > limit:
        raise CaldpoError(
            f"{name} draws random numbers in training that no dropout rate disables (they change its logits by"
            f" {result.noise:.1g} of their spread)",
            key="model.dropout",
            value="false",
            remedy="set model.dropout=true to train with its noise, or choose another model",
        )


def probe(model: PreTrainedModel, *, training: bool = True, max_length: int = 0) -> ProbeResult:
    """Compare logits of a few random tokens that have to be the same.

    Args:
        model: with its weights; left unchanged.
        training: whether to probe training mode, too.
        max_length: tokens of the longest sequence. Where it is beyond the length at which rotary frequencies change,
            rows of such lengths are probed as well, if they are short enough.

    Raises:
        NonFiniteLogitsError: logits are NaN.
    """
    use_rowwise_frequencies(model)
    first, shared = random_ids(model, _LENGTH, seed=0), _SHARED
    rows = [first, *(first[:shared] + random_ids(model, _LENGTH - shared, seed) for seed in (1, 2))]
    rows.append(random_ids(model, _SHORT, seed=3))
    with evaluating(model):
        together = _logits(model, rows)
        alone = _logits(model, rows[-1:])[0]
        batch = [difference(model, together[-1], alone)]
        limit = frequency_change_length(model)
        if limit is not None and max_length > limit and 4 * model.num_parameters() * (limit + 8) <= _MAX_FLOPS:
            pair = [random_ids(model, length, seed=4) for length in (limit + 8, _SHORT)]
            for row, both in zip(pair, _logits(model, pair), strict=True):
                batch.append(difference(model, both, _logits(model, [row])[0]))
    future = min(difference(model, together[0][:shared], other[:shared]) for other in together[1:3])
    return ProbeResult(future, max(batch), _training_noise(model, rows, together) if training else 0.0)


def tolerance(model: PreTrainedModel) -> float:
    """Largest difference of a :class:`ProbeResult` by rounding."""
    return TOLERANCE.get(_precision(model), HALF_TOLERANCE)


def _training_noise(model: PreTrainedModel, rows: Sequence[list[int]], expected: list[Tensor]) -> float:
    largest = 0.0
    with evaluating(model):  # restores the mode of each module
        model.train()
        for seed in range(_PASSES):
            with _random_numbers(model, seed) as drawn:
                logits = _logits(model, rows)
            differences = [difference(model, *both) for both in zip(logits, expected, strict=True)]
            largest = max(largest, *differences)
            if largest > tolerance(model) or not drawn:
                break
    return largest


@contextmanager
def _random_numbers(model: PreTrainedModel, seed: int) -> Iterator[list[bool]]:
    """Seed the generator while active; yields a list that is not empty at the end if random numbers were drawn."""
    device, drawn = model.device, list[bool]()

    def state() -> Tensor:
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        before = state()
        yield drawn
        if not torch.equal(before, state()):
            drawn.append(True)


def _logits(model: PreTrainedModel, rows: Sequence[list[int]]) -> list[Tensor]:
    """Compute logits of each row, ``[tokens, vocabulary]``, in one batch that is padded on the right."""
    length = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    positions = torch.arange(length, device=model.device)
    inputs = {
        "input_ids": torch.tensor([row + [0] * (length - len(row)) for row in rows], device=model.device),
        "attention_mask": (positions < lengths[:, None]).long(),
        "position_ids": positions.expand(len(rows), -1).minimum(lengths[:, None] - 1),
    }
    accepted = accepted_names(model)
    keywords: dict[str, Any] = {name: value for name, value in inputs.items() if accepted is None or name in accepted}
    logits: Tensor = model(**keywords, use_cache=False).logits
    by_row = [values[:count] for values, count in zip(logits, lengths.tolist(), strict=True)]
    if any(bool(values.isnan().any()) for values in by_row):
        raise NonFiniteLogitsError
    return by_row


def difference(model: PreTrainedModel, one: Tensor, other: Tensor) -> float:
    """Measure the difference of logits relative to their spread, of the worst token; in half precision the median."""
    wide = torch.promote_types(one.dtype, torch.float32)
    one, other = one.to(wide).clamp(-_HUGE, _HUGE), other.to(wide).clamp(-_HUGE, _HUGE)
    apart = (one - other).square().mean(-1).sqrt()
    spread = (other - other.mean(-1, keepdim=True)).square().mean(-1).sqrt()
    sizes = apart / spread.clamp_min(torch.finfo(wide).tiny)
    return float(sizes.max() if _precision(model) in TOLERANCE else sizes.median())


def _precision(model: PreTrainedModel) -> torch.dtype:
    """Coarsest dtype that logits are computed in, by the weights; bfloat16 stands for all half precision."""
    dtypes = {p.dtype for p in model.parameters()}
    kind = model.device.type
    rounded = torch.is_autocast_enabled(kind) or torch.get_float32_matmul_precision() != "highest"
    if dtypes <= {torch.float64}:
        return torch.float64
    return torch.float32 if dtypes <= {torch.float32, torch.float64} and not rounded else torch.bfloat16


def random_ids(model: PreTrainedModel, count: int, seed: int) -> list[int]:
    """Draw tokens of the model's vocabulary; the same for the same seed."""
    size = model.config.get_text_config().vocab_size
    return [random.Random(f"{seed} {place}").randrange(size) for place in range(count)]


def _require_known_frequencies(model: PreTrainedModel, max_length: int) -> None:
    """Refuse a model's own code that computes rotary frequencies by the longest row, if rows are that long."""
    config: Any = model.config.get_text_config()
    if frequency_change_length(model) is not None or type(model).__module__.startswith("transformers."):
        return
    for name in ("rope_parameters", "rope_scaling"):
        settings = getattr(config, name, None)
        if not isinstance(settings, dict):
            continue
        kind = settings.get("rope_type", settings.get("type"))
        limit = settings.get("original_max_position_embeddings", getattr(config, "max_position_embeddings", None))
        if kind in ("longrope", "su", "dynamic") and isinstance(limit, int) and limit < max_length:
            raise CaldpoError(
                f"this {type(model).__name__} computes rotary frequencies ({kind}) by the longest row of a batch, so"
                f" that a sequence of more than {limit:,} tokens would change the log-probs of its batch mates",
                key="data.max_length",
                value=max_length,
                remedy=f"set data.max_length={limit}",
            )
