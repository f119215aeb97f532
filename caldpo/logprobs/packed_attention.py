"""Attention over packed pairs: one row of tokens that holds prompt, chosen and rejected of each pair.

A prompt's tokens attend to the prompt; each response attends to the prompt and to itself, and to nothing else of
the row. So each response is computed as if alone after its prompt, while the prompt's own tokens go through every
other layer of the model once instead of twice.

The functions are registered with transformers under their own names and called by every model that uses its
attention interface. The pairs' lengths pass as the keyword ``spans`` through the model's forward; where they are
absent (generation, padded batches) the attention is transformers' own.

A pair's responses are computed one after the other by PyTorch's SDPA; on a GPU, in 16 bits, all pairs at once by a
kernel for sequences of different lengths, see :mod:`caldpo.logprobs.varlen_attention`.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from caldpo.errors import CaldpoError
from caldpo.logprobs.attention_groups import Spans, attend_by_length, length_groups
from caldpo.logprobs.varlen_attention import attend_in_two_calls, flash_attention, why_not_flash
from caldpo.utils.collectives import is_first_rank

log = logging.getLogger(__name__)

SDPA, EAGER = "caldpo_sdpa", "caldpo_eager"
_UNSUPPORTED = ("s_aux", "position_bias", "head_mask", "cache")  # keywords of other attentions


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make a model's attention support ``spans``; without them it is unchanged."""
    # a model without SDPA has scores that it cannot compute (soft-capped ones), in rows that are not packed
    eager = model.config._attn_implementation in ("eager", EAGER) or not model._supports_sdpa
    model.set_attn_implementation(EAGER if eager else SDPA)


def _sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    if settings.get("spans") is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return output
    return _packed(module, query, key, value, flash=True, **settings), None


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    if settings.get("spans") is not None:
        return _packed(module, query, key, value, flash=False, **settings), None
    groups = query.shape[1] // key.shape[1]
    scale, softcap, dropout = _numbers(module, query, settings)
    output = _softmax_attention(
        query, repeat_kv(key, groups), repeat_kv(value, groups), attention_mask, scale, softcap, dropout
    )
    return output.transpose(1, 2).contiguous(), None


def _packed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, spans: Spans, flash: bool, **settings: Any
) -> Tensor:
    """Attention of one packed row, with ``flash`` by the variable-length kernel where it can.

    Query ``[1, heads, tokens, size]``, key and value ``[1, key-value heads, tokens, size]`` give ``[1, tokens, heads,
    size]``; the spans add up to ``tokens``.
    """
    unsupported = [name for name in _UNSUPPORTED if settings.get(name) is not None]
    window = settings.get("sliding_window")
    if window is not None and window < max(p + max(c, r) for p, c, r in spans):
        unsupported.append(f"a sliding window of {window} tokens")
    if unsupported:
        raise CaldpoError(
            f"this model's attention has {', '.join(unsupported)}, which packed pairs do not support",
            key="layout",
            value="packed",
            remedy="set layout=padded",
        )
    scale, softcap, dropout = _numbers(module, query, settings)
    if flash:
        obstacle = why_not_flash(query, key, value, softcap, dropout)
        if query.is_cuda and not torch.compiler.is_compiling():
            _announce(obstacle)
        if obstacle is None:
            return attend_in_two_calls(query, key, value, spans, scale, flash_attention)
    return attend_by_response(query, key, value, spans, scale, softcap=softcap, dropout=dropout)


def attend_by_response(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Spans,
    scale: float,
    *,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of one packed row, a call for each response or for all of one length.

    Shapes are those of ``attend_in_two_calls``.
    """
    repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if softcap is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, dropout_p=dropout)
        length = q.shape[2]
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        mask = torch.zeros(length, length, dtype=q.dtype, device=q.device).masked_fill(future, torch.finfo(q.dtype).min)
        return _softmax_attention(q, k, v, mask, scale, softcap, dropout)

    if query.device.type == "cpu" and not dropout and (groups := length_groups(spans)) is not None:
        return attend_by_length(query, key, value, groups, attend)
    # Pieces of one split: its backward is one concatenation, where slices would each fill a row with zeros.
    sizes = [tokens for span in spans for tokens in span]
    pieces = list(zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True))
    outputs = []
    for (prompt, chosen, rejected), (length, _, _) in zip(_threes(pieces), spans, strict=True):
        outputs.append(attend(*_join(prompt, chosen)))
        # The prompt's queries are computed again and dropped: causal attention without a mask is faster.
        outputs.append(attend(*_join(prompt, rejected))[:, :, length:])
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


@functools.cache
def _announce(obstacle: str | None) -> None:
    """Log once how packed rows are computed on this GPU; the slower way is a warning."""
    if not is_first_rank():
        return
    if obstacle is None:
        log.info("attention of packed rows: all pairs at once, by PyTorch's variable-length kernel")
    else:
        log.warning(
            "attention of packed rows: a response at a time, not by PyTorch's variable-length kernel (%s)", obstacle
        )


def _threes(pieces: list[Any]) -> Any:
    return zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True)


def _join(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.cat(both, dim=2) for both in zip(first, second, strict=True)]


def _numbers(module: nn.Module, query: Tensor, settings: dict[str, Any]) -> tuple[float, float | None, float]:
    """Scale, soft-cap and dropout."""
    scaling = settings.get("scaling")
    dropout = settings.get("dropout", 0.0) if module.training else 0.0
    return query.shape[-1] ** -0.5 if scaling is None else scaling, settings.get("softcap"), dropout


def _softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attention written out, for transforms that fused kernels lack: ``softmax(cap tanh(qk/cap) + mask) v``."""
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return F.dropout(weights, dropout) @ value


AttentionInterface.register(SDPA, _sdpa)
AttentionInterface.register(EAGER, _eager)
AttentionMaskInterface.register(SDPA, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
AttentionMaskInterface.register(EAGER, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
