"""Attention of a packed row in two calls, over sequences of different lengths.

The first call takes prompt and chosen response of each pair as one causal sequence. The second has the rejected
responses as queries, and prompt and rejected response as keys and values; its causal mask is aligned at the ends, so
that a response sees its whole prompt. On a GPU a call is PyTorch's variable-length flash kernel; written out in plain
PyTorch, the same function is what it is compared with.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from caldpo.errors import one_line
from caldpo.logprobs.attention_groups import Spans

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before PyTorch 2.10
    varlen_attn = None  # type: ignore[assignment]

DTYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD, HEAD_MULTIPLE = 256, 8  # sizes of a head that flash attention takes
_DEVICES = {"cuda"}
_CHECKED: Spans = ((5, 3, 6), (1, 1, 1), (17, 4, 70))
_CLOSE = 0.03  # largest difference from float32, of values and of gradients, relative to the largest of them


@dataclass(frozen=True)
class Lengths:
    """Where the sequences of a call begin and end.

    ``cu_*`` (int32, ``[sequences + 1]``) are the places at which they begin, and the number of tokens.
    """

    cu_query: Tensor
    cu_key: Tensor
    max_query: int  # tokens of the longest
    max_key: int

    @classmethod
    def of(cls, queries: Sequence[int], keys: Sequence[int], device: torch.device) -> Lengths:
        """Make them of the numbers of tokens."""

        def bounds(tokens: Sequence[int]) -> Tensor:
            return torch.tensor([0, *accumulate(tokens)], dtype=torch.int32, device=device)

        return cls(bounds(queries), bounds(keys), max(queries), max(keys))


Attention = Callable[[Tensor, Tensor, Tensor, Lengths, float], Tensor]
"""Causal attention over sequences that stand one after the other, aligned at their ends.

Query ``[query tokens, heads, size]``, key and value ``[key tokens, key-value heads, size]``, lengths and the scale of
the scores give ``[query tokens, heads, size]``.
"""


def flash_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, scale: float) -> Tensor:
    """:data:`Attention` by PyTorch's kernel, whose window ``(-1, 0)`` is causal and aligned at the ends."""
    output: Any = varlen_attn(
        *(query, key, value, lengths.cu_query, lengths.cu_key, lengths.max_query, lengths.max_key),
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output


def written_out_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, scale: float) -> Tensor:
    """:data:`Attention` in plain PyTorch, a sequence at a time, on any device and in any dtype."""
    groups = query.shape[1] // key.shape[1]
    sizes = lengths.cu_query.diff().tolist(), lengths.cu_key.diff().tolist()
    outputs = []
    for q, k, v in zip(query.split(sizes[0]), key.split(sizes[1]), value.split(sizes[1]), strict=True):
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scores = torch.einsum("qhs,khs->hqk", q, k) * scale
        is_seen = torch.ones_like(scores[0], dtype=torch.bool).tril(len(k) - len(q))
        weights = scores.masked_fill(~is_seen, -torch.inf).softmax(dim=-1)
        outputs.append(torch.einsum("hqk,khs->qhs", weights, v))
    return torch.cat(outputs)


@dataclass(frozen=True)
class Calls:
    """Which tokens of a row go into the two calls, as places in the row, and the lengths of their sequences."""

    with_chosen: Tensor  # prompt and chosen of every pair: queries, keys and values of the first call
    rejected: Tensor  # queries of the second
    with_rejected: Tensor  # prompt and rejected of every pair: its keys and values
    back: Tensor  # places of the row's tokens in the two outputs together
    first: Lengths
    second: Lengths


@functools.lru_cache(maxsize=2)  # all layers of a forward pass, and its recomputation, have the same row
def calls_of(spans: Spans, device: torch.device) -> Calls:
    """Lay out the two calls of a packed row."""
    starts = [0, *accumulate(sum(span) for span in spans)][:-1]
    prompts = [range(start, start + p) for start, (p, _, _) in zip(starts, spans, strict=True)]
    chosen = [range(x.stop, x.stop + c) for x, (_, c, _) in zip(prompts, spans, strict=True)]
    rejected = [range(x.stop, x.stop + r) for x, (_, _, r) in zip(chosen, spans, strict=True)]
    first = [place for x, y in zip(prompts, chosen, strict=True) for place in (*x, *y)]
    second = [place for x in rejected for place in x]
    keys = [place for x, y in zip(prompts, rejected, strict=True) for place in (*x, *y)]
    with_chosen, with_rejected = [p + c for p, c, _ in spans], [p + r for p, _, r in spans]
    with torch.inference_mode(False):  # else what an evaluation has laid out could not be used in training
        return Calls(
            with_chosen=torch.tensor(first, device=device),
            rejected=torch.tensor(second, device=device),
            with_rejected=torch.tensor(keys, device=device),
            back=torch.tensor(first + second, device=device).argsort(),
            first=Lengths.of(with_chosen, with_chosen, device),
            second=Lengths.of([r for _, _, r in spans], with_rejected, device),
        )


def attend_in_two_calls(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float, attention: Attention
) -> Tensor:
    """Attention of one packed row, by two calls of ``attention``.

    Query ``[1, heads, tokens, size]``, key and value ``[1, key-value heads, tokens, size]`` give ``[1, tokens, heads,
    size]``.
    """
    # a fake tensor belongs to its mode, and must not be found by another
    lay_out = calls_of if type(query) is Tensor else calls_of.__wrapped__
    calls = lay_out(spans, query.device)
    query, key, value = (x[0].transpose(0, 1).to(product_dtype(x)) for x in (query, key, value))
    q, k, v = (x.index_select(0, calls.with_chosen) for x in (query, key, value))
    first = attention(q, k, v, calls.first, scale)
    k, v = (x.index_select(0, calls.with_rejected) for x in (key, value))
    second = attention(query.index_select(0, calls.rejected), k, v, calls.second, scale)
    return torch.cat([first, second]).index_select(0, calls.back)[None]


def product_dtype(tensor: Tensor) -> torch.dtype:
    """Tell the dtype of a tensor in products: that of autocast, where it is on."""
    kind = tensor.device.type
    casts = torch.is_autocast_enabled(kind) and tensor.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else tensor.dtype


def why_not_flash(query: Tensor, key: Tensor, value: Tensor, softcap: float | None, dropout: float) -> str | None:
    """Name what prevents the kernel for these tensors; None if nothing does.

    Args:
        query, key, value: of :func:`attend_in_two_calls`.
        softcap: cap of the scores.
        dropout: share of the attention weights that is dropped.
    """
    if query.device.type not in _DEVICES:
        return f"it is for {' and '.join(sorted(_DEVICES))}"
    if torch.compiler.is_compiling():
        return "the model is compiled"
    if softcap is not None:
        return "scores are soft-capped"
    if dropout:
        return "attention weights are dropped"
    dtype, size = product_dtype(query), query.shape[-1]
    if {product_dtype(key), product_dtype(value)} != {dtype} or dtype not in DTYPES:
        return f"it is for bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if {key.shape[-1], value.shape[-1]} != {size} or size > LARGEST_HEAD or size % HEAD_MULTIPLE:
        return f"heads of size {size} and {value.shape[-1]}: it takes multiples of {HEAD_MULTIPLE} to {LARGEST_HEAD}"
    missing = _missing()
    if missing is not None or type(query) is not Tensor:  # tensors without values cannot be compared
        return missing
    return _difference(query.device, dtype, query.shape[1], key.shape[1], size)


@functools.cache
def _missing() -> str | None:
    """Name the arguments that this version of PyTorch lacks."""
    known = set() if varlen_attn is None else set(inspect.signature(varlen_attn).parameters)
    lacking = {"scale", "window_size", "enable_gqa"} - known
    return (
        f"PyTorch {torch.__version__} has no variable-length attention with {', '.join(lacking)}" if lacking else None
    )


@functools.cache
def _difference(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int) -> str | None:
    """Compare the kernel with the written-out attention in float32 once, values and gradients, on a small row."""
    tokens = sum(map(sum, _CHECKED))
    generator = torch.Generator().manual_seed(0)  # of its own: what the run draws stays
    try:
        with _outside_of_the_run():
            drawn = [torch.randn(1, n, tokens, size, generator=generator) for n in (heads, key_heads, key_heads, heads)]
            narrow = [x.to(device, dtype) for x in drawn]
            actual = _with_gradients(narrow, flash_attention)
            expected = _with_gradients([x.float() for x in narrow], written_out_attention)
    except RuntimeError as error:  # a device that has no such kernel
        return f"it fails here ({one_line(error)})"
    differences = [(x.float() - y).abs().max() / y.abs().max() for x, y in zip(actual, expected, strict=True)]
    most = float(torch.stack(differences).max())
    return None if most <= _CLOSE else f"it differs by {most:.1g} from attention in float32"


def _with_gradients(tensors: list[Tensor], attention: Attention) -> list[Tensor]:
    *inputs, weights = tensors
    query, key, value = (x.detach().requires_grad_() for x in inputs)
    output = attend_in_two_calls(query, key, value, _CHECKED, query.shape[-1] ** -0.5, attention)
    gradients = torch.autograd.grad((output.transpose(1, 2) * weights).sum(), [query, key, value])
    return [output.detach(), *gradients]


@contextlib.contextmanager
def _outside_of_the_run() -> Iterator[None]:
    """Compute with gradients, in the given dtypes, and unseen by gradient checkpointing, whatever is under way."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cuda", enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
    ):
        yield


@contextlib.contextmanager
def flash_as_on(device: str) -> Iterator[None]:
    """Take the kernel for tensors without values on the CPU where ``device`` would, for estimates of its memory."""
    added = {"cpu"} if device in _DEVICES else set()
    _DEVICES.update(added)
    try:
        yield
    finally:
        _DEVICES.difference_update(added)
