"""What a few tokens show of a model before it is trained or evaluated.

Log-probs are what this project compares, so that they have to be a function of prompt and response alone: not of later
tokens, of the other rows of a batch, or of chance. Makes of models differ in it and no configuration says so; a few
forwards of a dozen tokens do.
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
from caldpo.logprobs.engine import accepted_names
from caldpo.logprobs.head import NotNumbersError
from caldpo.models.adapters import base_model, is_adapted
from caldpo.models.eval_mode import evaluating
from caldpo.models.rope_frequencies import frequencies_by_row, same_up_to
from caldpo.utils.out_of_memory import is_out_of_memory

SAME = {torch.float64: 1e-5, torch.float32: 1e-4}
"""How far logits may lie apart by rounding, relative to their spread over the vocabulary. Makes compute norms and
rotary frequencies in float32 whatever their dtype."""

COARSE = 0.05
"""The same in half precision, of half of the places: where experts are chosen, rounding changes some by much more."""

_LENGTH, _SHARED, _SHORT = 12, 6, 7  # tokens of the rows, those that two of them begin with, and of a padded one
_PASSES = 8  # in training mode, of a model that draws random numbers there and does not show it at once
_HUGE = 1e5  # logits of tokens that a model rules out may be infinite
_AFFORDABLE = 1e12  # operations of a probe at the length where rotary frequencies change: seconds on a CPU


@dataclass(frozen=True)
class Findings:
    """Largest differences between logits that have to be the same, relative to their spread; see :data:`SAME`.

    Args:
        future: of tokens before one that was changed.
        mates: of a row alone and in a batch with others, padded.
        noise: of training mode and evaluation mode; 0 where it was not looked at.
    """

    future: float
    mates: float
    noise: float = 0.0


def require_sound(
    policy: Any, *, training: bool, max_length: int = 0, dropout: bool = False, key: str = "model"
) -> None:
    """Refuse a model whose log-probs would be wrong; announces nothing where all is as usual.

    Args:
        policy: a causal language model with its weights, with or without adapters. On the meta device it is left to the
            rank that has the weights.
        training: whether it is going to be trained.
        max_length: tokens of the longest sequence; 0: not known.
        dropout: whether noise in training is wanted.
        key: what chose the model, for the message.

    Raises:
        CaldpoError: it is not causal, its rows are not independent, or it has noise in training that nobody wants.
    """
    model = base_model(policy)
    if next(model.parameters()).is_meta:
        return
    _require_known_frequencies(model, max_length)
    with policy.disable_adapter() if is_adapted(policy) else nullcontext():
        try:
            found = probe(model, training=training and not dropout, max_length=max_length)
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
    if found.future > limit:
        raise CaldpoError(
            f"this {type(model).__name__} ({kind}) is not causal: a later token changes the logits of earlier ones, so"
            " that its log-probs see the tokens that they predict",
            key=key,
            value=kind,
            remedy="choose a decoder-only model; one that also comes as an encoder needs is_decoder in its config.json",
        )
    if found.mates > limit:
        raise CaldpoError(
            f"this {type(model).__name__} ({kind}) gives a row other logits in a padded batch than alone (by"
            f" {found.mates:.1g} of their spread): it does not heed attention_mask",
            key=key,
            value=kind,
            remedy="choose another model",
        )
    if found.noise > limit:
        raise CaldpoError(
            f"this {type(model).__name__} ({kind}) draws random numbers in training that cannot be switched off by any"
            f" rate (they change its logits by {found.noise:.1g} of their spread)",
            key="model.dropout",
            value="false",
            remedy="set model.dropout=true to train with its noise, or choose another model",
        )


def probe(model: PreTrainedModel, *, training: bool = True, max_length: int = 0) -> Findings:
    """Compare logits of a few random tokens that have to be the same.

    Args:
        model: with its weights; in every respect as it was afterwards.
        training: whether to look at training mode, too.
        max_length: tokens of the longest sequence. Where it is beyond the length at which rotary frequencies change,
            rows of such lengths are looked at as well, if they are short enough to.

    Raises:
        NotNumbersError: the logits are not numbers.
    """
    frequencies_by_row(model)
    first, shared = random_ids(model, _LENGTH, seed=0), _SHARED
    rows = [first, *(first[:shared] + random_ids(model, _LENGTH - shared, seed) for seed in (1, 2))]
    rows.append(random_ids(model, _SHORT, seed=3))
    with evaluating(model):
        together = _logits(model, rows)
        alone = _logits(model, rows[-1:])[0]
        mates = [difference(model, together[-1], alone)]
        if 0 < _long(model, max_length) <= _AFFORDABLE:
            limit = same_up_to(model) or 0
            pair = [random_ids(model, length, seed=4) for length in (limit + 8, _SHORT)]
            mates += [
                difference(model, both, one)
                for both, one in zip(_logits(model, pair), (_logits(model, [row])[0] for row in pair), strict=True)
            ]
    future = min(difference(model, together[0][:shared], other[:shared]) for other in together[1:3])
    return Findings(future, max(mates), _noise(model, rows, together) if training else 0.0)


def tolerance(model: PreTrainedModel) -> float:
    """How large a difference of :class:`Findings` may be by rounding."""
    return SAME.get(_precision(model), COARSE)


def _noise(model: PreTrainedModel, rows: Sequence[list[int]], wanted: list[Tensor]) -> float:
    largest = 0.0
    with _training(model):
        for seed in range(_PASSES):
            with _random_numbers(model, seed) as drawn:
                found = _logits(model, rows)
            differences = [difference(model, *both) for both in zip(found, wanted, strict=True)]
            largest = max(largest, *differences)
            if largest > tolerance(model) or not drawn:
                break
    return largest


@contextmanager
def _training(model: PreTrainedModel) -> Iterator[None]:
    with evaluating(model):  # puts every module back into its mode
        model.train()
        yield


@contextmanager
def _random_numbers(model: PreTrainedModel, seed: int) -> Iterator[list[bool]]:
    """Random numbers of a seed; afterwards the list is not empty if any were drawn."""
    device, drawn = model.device, list[bool]()

    def state() -> Tensor:
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        before = state()
        yield drawn
        if not torch.equal(before, state()):
            drawn.append(True)


def _long(model: PreTrainedModel, max_length: int) -> float:
    """Operations of a forward at the length where rotary frequencies change; 0 if no row gets there."""
    limit = same_up_to(model)
    return 0 if limit is None or max_length <= limit else 2 * model.num_parameters() * 2 * (limit + 8)


def _logits(model: PreTrainedModel, rows: Sequence[list[int]]) -> list[Tensor]:
    """Logits of each row, ``[tokens, vocabulary]``, from one batch that is padded on the right."""
    length = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    places = torch.arange(length, device=model.device)
    inputs = {
        "input_ids": torch.tensor([row + [0] * (length - len(row)) for row in rows], device=model.device),
        "attention_mask": (places < lengths[:, None]).long(),
        "position_ids": places.expand(len(rows), -1).minimum(lengths[:, None] - 1),
    }
    accepted = accepted_names(model)
    given: dict[str, Any] = {name: value for name, value in inputs.items() if accepted is None or name in accepted}
    logits: Tensor = model(**given, use_cache=False).logits
    found = [values[:count] for values, count in zip(logits, lengths.tolist(), strict=True)]
    if any(bool(values.isnan().any()) for values in found):
        raise NotNumbersError
    return found


def difference(model: PreTrainedModel, one: Tensor, other: Tensor) -> float:
    """How far logits at the same tokens lie apart, relative to their spread over the vocabulary.

    Of the worst token; in half precision of the median one.
    """
    wide = torch.promote_types(one.dtype, torch.float32)
    one, other = one.to(wide).clamp(-_HUGE, _HUGE), other.to(wide).clamp(-_HUGE, _HUGE)
    apart = (one - other).square().mean(-1).sqrt()
    spread = (other - other.mean(-1, keepdim=True)).square().mean(-1).sqrt()
    sizes = apart / spread.clamp_min(torch.finfo(wide).tiny)
    return float(sizes.max() if _precision(model) in SAME else sizes.median())


def _precision(model: PreTrainedModel) -> torch.dtype:
    """The coarsest dtype that logits are computed in, as far as weights tell; bfloat16 stands for all coarse ones."""
    dtypes = {p.dtype for p in model.parameters()}
    kind = model.device.type
    rounded = torch.is_autocast_enabled(kind) or torch.get_float32_matmul_precision() != "highest"
    if dtypes <= {torch.float64}:
        return torch.float64
    return torch.float32 if dtypes <= {torch.float32, torch.float64} and not rounded else torch.bfloat16


def random_ids(model: PreTrainedModel, count: int, seed: int) -> list[int]:
    """Tokens of the model's vocabulary; the same for the same seed."""
    words = model.config.get_text_config().vocab_size
    return [random.Random(f"{seed} {place}").randrange(words) for place in range(count)]


def _require_known_frequencies(model: PreTrainedModel, max_length: int) -> None:
    """Refuse code that comes with a model and has rotary frequencies of the longest row in a way of its own.

    Raises:
        CaldpoError: there are sequences that are long enough for it.
    """
    config: Any = model.config.get_text_config()
    if same_up_to(model) is not None or type(model).__module__.startswith("transformers."):
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
