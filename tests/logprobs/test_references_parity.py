"""Every reference mode gives, in every layout, the log-probs of the reference's full logits."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caldpo.data.batching import MicroBatch
from caldpo.data.collate import Layout, collate
from caldpo.data.data_loading import PairBatches
from caldpo.logprobs.packed_attention import use_packed_attention
from caldpo.models.adapted_policy import base_model, is_adapted
from caldpo.reference.disabled_adapter import Adapter
from caldpo.reference.frozen_model import Frozen
from caldpo.reference.precomputed import Precomputed
from caldpo.reference.reference_base import ReferenceContext
from caldpo.types import PairBatch
from tests.helpers.logprobs import pair_logprobs
from tests.logprobs import naive
from tests.logprobs.models import kept, make, wide_copy
from tests.logprobs.naive import PAIRS
from tests.logprobs.test_adapters import adapted
from tests.reference.contexts import make_context

ARCHITECTURES = pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "gemma2", "cohere", "mistral", "qwen2", "qwen3", "gpt_neox"]
)
TARGETS = {"gpt2": ["c_attn"], "gpt_neox": ["query_key_value"]}
LAYOUTS = pytest.mark.parametrize("layout", ["padded", "packed"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
WAYS = pytest.mark.parametrize("way", ["frozen", "precomputed", "adapter"])
ROWS = [4, 0, 5, 2, 1, 3]  # in another order than that in which they are computed


def source(way: str, cache: Path) -> Any:
    ways: dict[str, Any] = {
        "frozen": Frozen,
        "precomputed": lambda: Precomputed(cache=str(cache), spot_check=3),
        "adapter": Adapter,
    }
    return ways[way]()


def batch_of(context: ReferenceContext, split: str, rows: Sequence[int], layout: Layout) -> PairBatch:
    """These rows of a split in this order."""
    made = PairBatches(context.splits[split], 0, layout=layout, split=split)
    return made[MicroBatch(tuple(rows), (1.0,) * len(rows), len(rows))]


def context_of(policy: Any, layout: Layout) -> ReferenceContext:
    """A context whose batches, of four pairs at most, have this layout."""
    context = make_context(
        policy, train=PAIRS, test=PAIRS, reload=(lambda: pytest.fail("it is there")) if is_adapted(policy) else None
    )

    def batches(split: str, rows: Sequence[int]) -> Iterator[PairBatch]:
        for place in range(0, len(rows), 4):
            yield batch_of(context, split, rows[place : place + 4], layout)

    return dataclasses.replace(context, batches=batches)


@functools.cache
def expected(architecture: str, dtype: torch.dtype) -> Tensor:
    """Of the starting weights, the base of every adapter here, in float64."""
    with torch.no_grad():
        return naive.logprobs(wide_copy(kept(architecture, dtype)), PAIRS)


def moved(policy: Any) -> Any:
    """The policy after some training: it is the reference no longer."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return policy.train()


@ARCHITECTURES
@LAYOUTS
@DTYPES
@WAYS
def test_log_probs_of_the_start(
    architecture: str, layout: Layout, dtype: torch.dtype, way: str, tmp_path: Path
) -> None:
    """Before and after the policy is trained, for pairs of training, of evaluation, and of no split."""
    policy: Any = copy.deepcopy(kept(architecture, dtype, layout == "packed"))
    if way == "adapter":
        policy = adapted(policy, TARGETS.get(architecture, ["q_proj", "v_proj"]))
    context = context_of(policy, layout)
    reference = source(way, tmp_path).build(context)
    reference.prepare()
    moved(policy)
    wanted = expected(architecture, dtype)[:, ROWS]
    rtol, atol = (1e-5, 1e-5) if dtype == torch.float32 else (2e-2, 0.15)
    for split in ("train", "test", "none of them"):
        batch = batch_of(context, "train", ROWS, layout)
        batch.split = split
        actual = torch.stack(reference.logps(batch))
        assert actual.dtype == torch.float32
        assert not actual.requires_grad
        torch.testing.assert_close(actual.double(), wanted, rtol=rtol, atol=atol)
    assert policy.training


@ARCHITECTURES
@DTYPES
def test_all_ways_and_layouts_agree(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """In one dtype the same arithmetic is done: of bfloat16, too, they differ by the layers' rounding alone."""
    actual = {}
    for layout in ("padded", "packed"):
        base = kept(architecture, dtype, layout == "packed")
        policy: Any = adapted(base, TARGETS.get(architecture, ["q_proj", "v_proj"]))
        context = context_of(policy, layout)
        for way in ("frozen", "precomputed", "adapter"):
            reference = source(way, tmp_path / layout).build(context)
            reference.prepare()
            actual[layout, way] = torch.stack(reference.logps(batch_of(context, "train", ROWS, layout)))
    first = actual["padded", "frozen"]
    for values in actual.values():
        near = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(values, first, rtol=near, atol=near * 10)


@pytest.mark.parametrize("written", ["padded", "packed"])
def test_what_one_layout_has_cached_the_other_reads(
    written: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Log-probs are the model's and the tokens', not the layout's; spot checks against the other layout hold."""
    other: Layout = "packed" if written == "padded" else "padded"
    for layout in (written, other):
        policy = make("llama", packed=layout == "packed")
        context = context_of(policy, layout)
        reference = source("precomputed", tmp_path).build(context)
        reference.prepare()
        actual = torch.stack(reference.logps(batch_of(context, "train", ROWS, layout)))
        torch.testing.assert_close(actual.double(), expected("llama", torch.float32)[:, ROWS], rtol=1e-5, atol=1e-5)
    lines = " ".join(capsys.readouterr()).splitlines()
    assert len(list(tmp_path.iterdir())) == 2  # a folder for each split
    assert len([line for line in lines if str(tmp_path) in line]) == 4, "each computed once and read once"


@pytest.mark.parametrize("way", ["frozen", "precomputed"])
def test_a_live_reference_takes_the_attention_of_the_policy(way: str, tmp_path: Path) -> None:
    """A model loaded once more for a packed run has to understand packed rows."""
    policy = make("llama", packed=True)
    context = dataclasses.replace(context_of(policy, "packed"), reload=lambda: make("llama"))
    reference = source(way, tmp_path).build(context)
    reference.prepare()
    with reference.live() as model:
        assert model.config._attn_implementation == base_model(policy).config._attn_implementation
    batch = batch_of(context, "train", ROWS, "packed")
    batch.split = ""
    moved(policy)
    actual = torch.stack(reference.logps(batch))
    torch.testing.assert_close(actual.double(), expected("llama", torch.float32)[:, ROWS], rtol=1e-5, atol=1e-5)


def test_a_live_packed_reference_of_no_packed_attention_would_be_wrong() -> None:
    """What the tests above would look like if spans were not understood."""
    model = make("llama")
    wrong = torch.stack(pair_logprobs(model, collate(PAIRS, 0, layout="packed")))
    assert (wrong - expected("llama", torch.float32)).abs().max() > 0.1
    use_packed_attention(model)
    right = torch.stack(pair_logprobs(model, collate(PAIRS, 0, layout="packed")))
    torch.testing.assert_close(right.double(), expected("llama", torch.float32), rtol=1e-5, atol=1e-5)
