"""Two calls over sequences of different lengths compute what one call for each response does."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from caldpo.data.collate import collate
from caldpo.estimation.fake_model import fake_batch, fake_tensors, to_dtype
from caldpo.estimation.step_memory import training_step
from caldpo.logprobs import LogprobEngine, packed_attention, varlen_attention
from caldpo.logprobs.packed_attention import attend_by_response, use_packed_attention
from caldpo.logprobs.varlen_attention import (
    Lengths,
    Spans,
    attend_in_two_calls,
    calls_of,
    flash_as_on,
    why_not_flash,
    written_out_attention,
)
from caldpo.models.model_source import prepare_for_training
from tests.helpers.messages import names
from tests.logprobs.models import make
from tests.logprobs.naive import PAIRS, gradients

ROWS: list[Spans] = [((1, 1, 1),), ((5, 3, 6),), ((5, 3, 6), (1, 1, 1), (2, 7, 1), (9, 1, 12))]
HEADS = [(4, 4), (4, 2), (6, 1)]
SIZE = 8


def drawn(spans: Spans, heads: int, key_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key and value of a packed row, and weights of its outputs."""
    tokens = sum(map(sum, spans))
    generator = torch.Generator().manual_seed(tokens + heads)
    row = [torch.randn(1, n, tokens, SIZE, generator=generator, dtype=dtype) for n in (heads, key_heads, key_heads)]
    weights = torch.randn(1, tokens, heads, SIZE, generator=generator, dtype=dtype)
    return [*(x.requires_grad_() for x in row), weights]


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    *row, weights = inputs
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), row)]


def in_full(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """Each response after its own copy of the prompt, in a padded batch with a mask, as transformers computes it."""
    tokens, starts = query.shape[2], [sum(map(sum, spans[:i])) for i in range(len(spans))]
    output = torch.zeros(1, tokens, query.shape[1], query.shape[3], dtype=query.dtype)
    rows = []
    for start, (p, c, r) in zip(starts, spans, strict=True):
        prompt = list(range(start, start + p))
        rows.append((prompt + list(range(start + p, start + p + c)), range(p + c)))
        rows.append((prompt + list(range(start + p + c, start + p + c + r)), range(p, p + r)))
    longest = max(len(places) for places, _ in rows)
    padded = torch.tensor([places + [0] * (longest - len(places)) for places, _ in rows])
    lengths = torch.tensor([len(places) for places, _ in rows])
    groups = query.shape[1] // key.shape[1]
    q, k, v = (x[0].transpose(0, 1)[padded].transpose(1, 2) for x in (query, key, value))
    mask = torch.ones(longest, longest).tril().bool() & (torch.arange(longest) < lengths[:, None])[:, None, None, :]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)
    for row, (places, own) in enumerate(rows):
        output = output.index_copy(1, torch.tensor([places[i] for i in own]), attended[row, list(own)][None])
    return output


@pytest.mark.parametrize("spans", ROWS, ids=str)
@pytest.mark.parametrize(("heads", "key_heads"), HEADS)
@pytest.mark.parametrize("scale", [SIZE**-0.5, 0.7])
def test_two_calls_are_a_call_for_each_response(spans: Spans, heads: int, key_heads: int, scale: float) -> None:
    """Values and gradients in float64, against today's path and against padded rows with a mask."""
    inputs = drawn(spans, heads, key_heads)
    row = inputs[:3]
    two = with_gradients(attend_in_two_calls(*row, spans, scale, written_out_attention), inputs)
    each = attend_by_response(*row, spans, scale)
    for expected in (with_gradients(each, inputs), with_gradients(in_full(*row, spans, scale), inputs)):
        for one, other in zip(two, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_mask_is_aligned_at_the_ends() -> None:
    """As PyTorch's own name for it says: the last query sees the last key."""
    query, key, value = (torch.randn(n, 2, SIZE, dtype=torch.float64) for n in (3, 7, 7))
    actual = written_out_attention(query, key, value, Lengths.of([3], [7], query.device), 0.4)
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    mask = causal_lower_right(3, 7)._materialize()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.4)
    torch.testing.assert_close(actual, expected[0].transpose(0, 1), rtol=1e-10, atol=1e-12)


class Kernel:
    """Stands in for PyTorch's kernel on the CPU: looks at what it is given, and computes it written out."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.dtype, int, int]] = []

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        assert window_size == (-1, 0)
        assert enable_gqa == (query.shape[1] != key.shape[1])
        for tensor, bounds, longest in ((query, cu_seq_q, max_q), (key, cu_seq_k, max_k), (value, cu_seq_k, max_k)):
            assert tensor.stride(-1) == 1
            assert bounds.dtype == torch.int32
            assert (int(bounds[0]), int(bounds[-1])) == (0, len(tensor))
            assert int(bounds.diff().max()) == longest
        self.calls.append((query.dtype, len(query), len(key)))
        assert scale is not None
        lengths = Lengths(cu_seq_q, cu_seq_k, max_q, max_k)
        kind = torch.promote_types(query.dtype, torch.float32)
        wide = written_out_attention(query.to(kind), key.to(kind), value.to(kind), lengths, scale)
        return wide.to(query.dtype)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """The kernel, as if the CPU had it; what was decided before, and with it, is forgotten."""
    stand_in = Kernel()
    monkeypatch.setattr(varlen_attention, "varlen_attn", stand_in)
    caches = (varlen_attention._difference, varlen_attention._missing, packed_attention._announce)
    for cached in caches:
        cached.cache_clear()
    with flash_as_on("cuda"):
        yield stand_in
    for cached in caches:
        cached.cache_clear()


BATCH = collate(PAIRS, 0, layout="packed")
PLACES = sum(len(p.prompt_ids) + len(p.chosen_ids) for p in PAIRS), sum(len(p.rejected_ids) for p in PAIRS)
KEYS = PLACES[0], sum(len(p.prompt_ids) + len(p.rejected_ids) for p in PAIRS)
MODELS: dict[str, dict[str, int]] = {"llama": {"head_dim": 8}, "qwen3": {}, "gpt2": {}, "gpt_neox": {}}


def logprobs_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    both = torch.cat(LogprobEngine(model)(BATCH))
    return both.detach(), gradients((both * torch.linspace(-1, 1, len(both))).sum(), model)


def todays(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """A call for each response."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen_attention, "_DEVICES", {"cuda"})
        return logprobs_and_gradients(model)


def of_the_batch(calls: list[tuple[torch.dtype, int, int]]) -> list[tuple[torch.dtype, int, int]]:
    """The calls without those of the comparison on a small row."""
    return [call for call in calls if call[1] in PLACES]


@pytest.mark.parametrize("architecture", MODELS)
def test_a_model_computes_the_same(architecture: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs and gradients in float64, which only this stand-in for the kernel takes."""
    monkeypatch.setattr(varlen_attention, "DTYPES", (torch.float64,))
    model = make(architecture, dtype=torch.float64, packed=True, **MODELS[architecture])
    actual, expected = logprobs_and_gradients(model), todays(model)
    calls = [(torch.float64, queries, keys) for queries, keys in zip(PLACES, KEYS, strict=True)]
    assert of_the_batch(kernel.calls) == calls * 2  # of two layers
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-6, atol=1e-6)  # the head sums in float32
    for name, gradient in expected[1].items():
        torch.testing.assert_close(actual[1][name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()) + 1e-9)


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "bf16-mixed"])
@pytest.mark.parametrize("architecture", MODELS)
def test_a_model_in_16_bits_takes_the_kernel(architecture: str, autocast: bool, kernel: Kernel) -> None:
    """Also where autocast leaves queries and keys in float32 behind their rotation."""
    wide = make(architecture, packed=True, **MODELS[architecture])
    exact, _ = logprobs_and_gradients(wide)
    assert kernel.calls == []
    model = wide if autocast else copy.deepcopy(wide).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual, of_parameters = logprobs_and_gradients(model)
    calls = [(torch.bfloat16, queries, keys) for queries, keys in zip(PLACES, KEYS, strict=True)]
    assert of_the_batch(kernel.calls) == calls * 2
    assert ((actual - exact) / exact.abs().clamp_min(1)).abs().max() < 0.25
    assert all(gradient.isfinite().all() for gradient in of_parameters.values())


def test_what_the_kernel_cannot(kernel: Kernel) -> None:
    query, key, value = (torch.randn(1, n, 4, SIZE, dtype=torch.bfloat16) for n in (4, 2, 2))
    assert why_not_flash(query, key, value, None, 0.0) is None
    names(why_not_flash(query, key, value, 30.0, 0.0), "soft-capped")
    names(why_not_flash(query, key, value, None, 0.1), "dropped")
    names(why_not_flash(query.float(), key.float(), value.float(), None, 0.0), "bfloat16", "float32")
    names(why_not_flash(query, key, value.float(), None, 0.0), "bfloat16")
    names(why_not_flash(query[..., :6], key[..., :6], value[..., :6], None, 0.0), "6", "8", "256")
    names(why_not_flash(query, key, value[..., :6], None, 0.0), "8", "6")
    wide = [x.repeat(1, 1, 1, 33) for x in (query, key, value)]
    names(why_not_flash(*wide, None, 0.0), "264")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen_attention, "_DEVICES", {"cuda"})
        names(why_not_flash(query, key, value, None, 0.0), "cuda")


def test_a_model_that_the_kernel_is_not_for_keeps_todays_path(kernel: Kernel) -> None:
    """Soft-capped scores, dropout, and float32: not one call, and no other log-probs."""
    for model in (
        make("gemma2", packed=True).bfloat16(),
        make("llama", packed=True, attention_dropout=0.5).bfloat16().train(),
        make("llama", packed=True),
    ):
        torch.manual_seed(0)
        actual = logprobs_and_gradients(model)
        torch.manual_seed(0)
        torch.testing.assert_close(actual, todays(model), rtol=0, atol=0)
    assert of_the_batch(kernel.calls) == []


@pytest.mark.parametrize("fault", ["top-left", "fails"])
def test_a_kernel_that_computes_otherwise_is_not_taken(
    fault: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by one comparison on a small row, in a forward pass under gradient checkpointing or without gradients."""
    tried = []

    def faulty(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, scale: float, **_: Any) -> Tensor:
        tried.append(len(query))
        if fault == "fails":
            raise RuntimeError("no kernel image is available for execution on the device")
        starts = bounds[0].tolist(), bounds[1].tolist()
        parts = []
        for i in range(len(starts[0]) - 1):
            q, k, v = (
                x[starts[at][i] : starts[at][i + 1]].transpose(0, 1) for x, at in ((query, 0), (key, 1), (value, 1))
            )
            groups = len(q) // len(k)
            k, v = k.repeat_interleave(groups, dim=0), v.repeat_interleave(groups, dim=0)
            parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(0, 1))
        return torch.cat(parts)

    faulty.__signature__ = inspect.signature(Kernel().__call__)  # type: ignore[attr-defined]
    monkeypatch.setattr(varlen_attention, "varlen_attn", faulty)
    query, key, value = (torch.randn(1, n, 4, SIZE, dtype=torch.bfloat16) for n in (4, 2, 2))
    with torch.inference_mode():
        reason = why_not_flash(query, key, value, None, 0.0)
    names(reason, *(["differs"] if fault == "top-left" else ["no kernel image"]))
    before = len(tried)
    assert why_not_flash(query, key, value, None, 0.0) == reason
    assert len(tried) == before, "once for a run"


def test_the_comparison_is_unseen_by_gradient_checkpointing(kernel: Kernel) -> None:
    """Its tensors are none of the recomputed ones, and the run's generator stays where it is."""
    model = make("llama", packed=True, head_dim=8).bfloat16().train()
    plain = logprobs_and_gradients(model)
    varlen_attention._difference.cache_clear()
    prepare_for_training(model, gradient_checkpointing=True, dropout=True)
    state = torch.get_rng_state()
    again = logprobs_and_gradients(model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(again[0], plain[0], rtol=0, atol=0)
    torch.testing.assert_close(again[1], plain[1], rtol=0, atol=0)


def test_a_row_laid_out_in_an_evaluation_serves_training() -> None:
    spans = ((3, 2, 2), (1, 2, 1))
    inputs = drawn(spans, 2, 2)
    calls_of.cache_clear()
    with torch.inference_mode():
        attend_in_two_calls(*inputs[:3], spans, 0.5, written_out_attention)
    output = attend_in_two_calls(*inputs[:3], spans, 0.5, written_out_attention)
    assert all(gradient.abs().max() > 0 for gradient in with_gradients(output, inputs)[1:])
    assert calls_of.cache_info().misses == 1


class Operations(TorchDispatchMode):
    """Count the operations of a name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.count = name, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name == self.name
        return func(*args, **(kwargs or {}))


def estimated(device: str) -> tuple[int, int]:
    """Bytes of activations of a step in bfloat16 on fake tensors, and calls of PyTorch's own kernel."""
    calls_of.cache_clear()
    with fake_tensors(device) as mode:
        model = to_dtype(make_fake(), torch.bfloat16).train()
        with Operations("torch_attn::_varlen_attn") as operations:
            memory = training_step(
                model, fake_batch(BATCH, mode), precision="bf16-true", reference=None, accumulates=False
            )
    assert calls_of.cache_info().currsize == 0, "fake tensors are not handed from one estimate to the next"
    return memory.activations, operations.count


def make_fake() -> Any:
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=1,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    use_packed_attention(model)
    return model


def test_an_estimate_for_a_gpu_takes_the_kernel() -> None:
    """And counts keys and values of their own heads, not repeated for the query's."""
    (on_cpu, none), (on_gpu, calls) = estimated("cpu"), estimated("cuda")
    assert (none, calls) == (0, 4)
    # of eight heads that share one key head: keys and values of prompts and both responses, seven times less
    assert on_gpu < on_cpu


def test_the_way_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    packed_attention._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="caldpo"):
        for obstacle in (None, None, "scores are soft-capped"):
            packed_attention._announce(obstacle)
    packed_attention._announce.cache_clear()
    first, second = (record.getMessage() for record in caplog.records)
    names(first, "packed rows", "all pairs at once", "variable-length kernel")
    names(second, "a response at a time", "soft-capped")
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
