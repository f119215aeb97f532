"""Which layout a model's batches have: packed where that gives the same log-probs as padded, padded elsewhere.

Packed rows need a model whose only way from one token to another is attention that goes through transformers'
attention interface. What its configuration says is believed first; then a few pairs are computed in both layouts.
"""

from __future__ import annotations

import random
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from caldpo.data.collate import Layout, collate
from caldpo.data.pair import TokenizedPair
from caldpo.errors import CaldpoError
from caldpo.logprobs.engine import LogprobEngine
from caldpo.logprobs.packed_attention import EAGER, SDPA, use_packed_attention
from caldpo.models.model_forward import NonFiniteLogitsError, evaluating, frequency_change_length

_WINDOWS = ("sliding_window", "attention_chunk_size")
_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of log-probs; coarser dtypes: _COARSE
_COARSE = 3e-2


def settle_layout(
    wanted: Literal["auto", "packed", "padded"], policy: Any, max_length: int, *, sharded: bool = False
) -> tuple[Layout, str]:
    """The layout for a model's batches, and why; the model is made ready for it.

    Args:
        wanted: ``auto`` takes packed where it can.
        policy: a causal language model, with or without adapters.
        max_length: tokens of the longest sequence.
        sharded: the model is going to be sharded over ranks, of which only the first has weights now. It looks for
            all of them, and cannot tell them to take padded instead.

    Raises:
        CaldpoError: packed is wanted, or agreed upon without looking, and the model cannot; or its logits are not
            numbers.
    """
    if wanted == "padded":
        return "padded", "as configured"
    model = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    asked = model.config._attn_implementation
    told = why_not_packed(model, max_length)
    if told is None and next(model.parameters()).is_meta:
        use_packed_attention(model)
        return "packed", "as the first rank finds"
    reason = told or _disagreement(policy, model)
    if reason is None:
        return "packed", f"each prompt once, no padding{_replaced(asked)}"
    if wanted == "auto" and not (sharded and told is None):
        return "padded", reason
    raise CaldpoError(
        f"this {type(model).__name__} cannot: {reason}",
        key="layout",
        value=wanted,
        remedy="set layout=padded" if wanted == "auto" else "set layout=auto or layout=padded",
    )


def why_not_packed(model: PreTrainedModel, max_length: int) -> str | None:
    """What a model's class and configuration have against packed rows; None if nothing."""
    if getattr(model, "_is_stateful", False):
        return "its layers carry a state from token to token"
    config = model.config.get_text_config()
    foreign = set(getattr(config, "layer_types", None) or ()) - _LAYERS
    if foreign:
        return f"it has layers of {', '.join(sorted(foreign))}"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention does not go through transformers' attention interface"
    for name in _WINDOWS:
        window = getattr(config, name, None)
        windowed = getattr(config, "use_sliding_window", True)
        if window is not None and windowed and window < max_length:
            return f"its {name} of {window:,} tokens is shorter than the {max_length:,} of the longest sequences"
    limit = frequency_change_length(model)
    if limit is not None and limit < max_length:
        return f"its rotary frequencies are others for sequences of more than {limit:,} tokens"
    if getattr(config, "attn_temperature_tuning", False):
        return "its attention's temperature follows the place in the row"
    return None


def _replaced(asked: str) -> str:
    """What is said where packed rows have another attention than the one that was asked for."""
    if asked in ("eager", "sdpa", EAGER, SDPA):
        return ""
    return f"; attention by PyTorch's SDPA, a sequence at a time, instead of {asked}"


def _disagreement(policy: Any, model: PreTrainedModel) -> str | None:
    """Compute a few pairs in both layouts; None if they agree, and the model then understands packed rows."""
    before = model.config._attn_implementation
    try:
        use_packed_attention(model)
        if model.config._attn_implementation == before and not before.startswith("caldpo"):
            reason: str | None = "its attention implementation cannot be set"
        else:
            with evaluating(policy):
                reason = _compare(policy, model)
    except NonFiniteLogitsError:
        raise
    except Exception as error:  # whatever a model of unknown make raises, padded batches remain
        reason = f"packed rows fail in it ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    if reason is not None and model.config._attn_implementation != before:
        model.set_attn_implementation(before)
    return reason


def _compare(policy: Any, model: PreTrainedModel) -> str | None:
    draw = random.Random(0)
    words = range(model.config.get_text_config().vocab_size)

    def ids(count: int) -> list[int]:
        return [draw.choice(words) for _ in range(count)]

    lengths = ((5, 3, 6), (1, 1, 1), (7, 4, 2))
    pairs = [TokenizedPair(ids(p), ids(c), ids(r), None, None, i, "") for i, (p, c, r) in enumerate(lengths)]
    engine = LogprobEngine(policy)
    padded, packed = (
        torch.cat(engine(collate(pairs, 0, layout=layout).to(model.device))) for layout in ("padded", "packed")
    )
    if padded.isnan().any() or not padded.isfinite().any():
        raise NonFiniteLogitsError
    difference = float(((padded - packed).abs() / padded.abs().clamp_min(1)).max())
    if difference <= _TOLERANCE.get(model.dtype, _COARSE):
        return None
    return f"packed rows change its log-probs by {difference:.1g} of their value"
