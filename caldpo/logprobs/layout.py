"""Choose the layout of a model's batches: packed where log-probs are the same as padded, else padded.

Packed rows need a model in which tokens interact only through attention, by transformers' attention interface. Its
class and configuration are checked first; then a few pairs are computed in both layouts.
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
from caldpo.models.adapted_policy import base_model
from caldpo.models.model_forward import NonFiniteLogitsError, evaluating, frequency_change_length

_WINDOWS = ("sliding_window", "attention_chunk_size")
_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of log-probs; coarser dtypes: _COARSE
_COARSE = 3e-2


def choose_layout(
    requested: Literal["auto", "packed", "padded"], policy: Any, max_length: int, *, sharded: bool = False
) -> tuple[Layout, str]:
    """Choose the layout for a model's batches, prepare the model for it, and return the reason.

    Args:
        requested: ``auto`` takes packed where possible.
        policy: with or without adapters.
        max_length: tokens of the longest sequence.
        sharded: the model is going to be sharded over ranks, of which only the first has weights now. It checks for
            all of them, and cannot fall back to padded.

    Raises:
        CaldpoError: packed is requested, or assumed by the other ranks, and the model cannot; or its logits are
            non-finite.
    """
    if requested == "padded":
        return "padded", "as configured"
    model = base_model(policy)
    attention = model.config._attn_implementation
    obstacle = why_not_packed(model, max_length)
    if obstacle is None and next(model.parameters()).is_meta:
        use_packed_attention(model)
        return "packed", "as on the first rank"
    reason = obstacle or _disagreement(policy, model)
    if reason is None:
        return "packed", f"each prompt once, no padding{_replaced_attention(attention)}"
    if requested == "auto" and not (sharded and obstacle is None):
        return "padded", reason
    raise CaldpoError(
        f"this {type(model).__name__} cannot: {reason}",
        key="layout",
        value=requested,
        remedy="set layout=padded" if requested == "auto" else "set layout=auto or layout=padded",
    )


def why_not_packed(model: PreTrainedModel, max_length: int) -> str | None:
    """Name what in a model's class and configuration prevents packed rows; None if nothing does."""
    if getattr(model, "_is_stateful", False):
        return "its layers carry a state from token to token"
    config = model.config.get_text_config()
    unknown = set(getattr(config, "layer_types", None) or ()) - _LAYERS
    if unknown:
        return f"it has layers of {', '.join(sorted(unknown))}"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention does not go through transformers' attention interface"
    for name in _WINDOWS:
        window = getattr(config, name, None)
        windowed = getattr(config, "use_sliding_window", True)
        if window is not None and windowed and window < max_length:
            return f"its {name} of {window:,} tokens is shorter than the {max_length:,} of the longest sequences"
    limit = frequency_change_length(model)
    if limit is not None and limit < max_length:
        return f"its rotary frequencies change for sequences of more than {limit:,} tokens"
    if getattr(config, "attn_temperature_tuning", False):
        return "the temperature of its attention depends on the position in the row"
    return None


def _replaced_attention(requested: str) -> str:
    """Note that packed rows have another attention than the requested one."""
    if requested in ("eager", "sdpa", EAGER, SDPA):
        return ""
    return f"; attention by PyTorch (SDPA, on a GPU its variable-length kernel) instead of {requested}"


def _disagreement(policy: Any, model: PreTrainedModel) -> str | None:
    """Compute a few pairs in both layouts; None if they agree, and the model is then prepared for packed rows."""
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
    except Exception as error:  # of any kind in a model's own code; padded batches remain
        reason = f"packed rows fail in it ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    if reason is not None and model.config._attn_implementation != before:
        model.set_attn_implementation(before)
    return reason


def _compare(policy: Any, model: PreTrainedModel) -> str | None:
    draw = random.Random(0)
    vocabulary = range(model.config.get_text_config().vocab_size)

    def ids(count: int) -> list[int]:
        return [draw.choice(vocabulary) for _ in range(count)]

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
