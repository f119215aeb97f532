"""Every architecture, layout, dtype and path of the engine against full logits of one sequence at a time.

Float32 is held to 1e-5, relative. bfloat16 cannot be: the rounding of the layers' activations changes with the shape
of every matrix product. It is held to the error that the same weights make in a pass of transformers' own for each
sequence, both measured against those weights in float64; and what the engine adds to the layers is held to 1e-5.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.logprobs import LogprobEngine, lm_head_ops
from tests.helpers.logprobs import pair_logprobs, response_logprobs
from tests.logprobs import naive
from tests.logprobs.engine import PART_ROWS, ROW_BYTES, assert_equal, by_engine, errors
from tests.logprobs.models import PARITY, VOCABULARY, kept, make, transformed, wide_copy
from tests.logprobs.naive import PAIRS, Result

EVERY = pytest.mark.parametrize("architecture", PARITY)
LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
WAYS = pytest.mark.parametrize("streamed", [False, True], ids=["call", "loss"])
CHECKPOINTED = pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts, some of groups of pairs, some of a pair too long for one."""
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", PART_ROWS * ROW_BYTES)


@functools.cache
def expected(architecture: str, dtype: torch.dtype = F32) -> Result:
    """By float64 arithmetic on the weights of the given dtype."""
    return naive.long_way(wide_copy(kept(architecture, dtype)))


@functools.cache
def transformers_own(architecture: str) -> Result:
    """By bfloat16 logits."""
    return naive.long_way(kept(architecture, BF16), expected(architecture, BF16).reference())


@EVERY
@LAYOUTS
@WAYS
@CHECKPOINTED
def test_float32(architecture: str, packed: bool, streamed: bool, checkpointed: bool) -> None:
    wanted = expected(architecture)
    model = kept(architecture, packed=packed, checkpointed=checkpointed)
    actual = by_engine(model, wanted.reference(), packed=packed, streamed=streamed)
    assert actual.logprobs.dtype == F32
    assert_equal(actual, wanted)


@EVERY
@LAYOUTS
@WAYS
@CHECKPOINTED
def test_bfloat16(architecture: str, packed: bool, streamed: bool, checkpointed: bool) -> None:
    """No less exact than transformers' own logits, give or take the luck of the layers' rounding."""
    wanted = expected(architecture, BF16)
    model = kept(architecture, BF16, packed, checkpointed)
    actual = by_engine(model, wanted.reference(), packed=packed, streamed=streamed)
    assert actual.logprobs.dtype == F32
    theirs = errors(transformers_own(architecture), wanted)
    for what, size in errors(actual, wanted).items():
        assert size < 1.5 * theirs[what], what
        assert size < (0.25 if what == "log-prob" else 0.08), what


@EVERY
@LAYOUTS
def test_bfloat16_adds_no_rounding_to_that_of_the_layers(architecture: str, packed: bool) -> None:
    """From the hidden states of the very same pass, in float64; the model's own logits are rounded beyond that."""
    model = kept(architecture, BF16, packed)
    batch = collate(PAIRS, 0, layout="packed" if packed else "padded")
    hidden: list[Tensor] = []
    head = model.get_output_embeddings()
    with head.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0])), torch.no_grad():
        logits = model(**batch.model_inputs()).logits.flatten(0, 1)[batch.predicts]
    states = hidden[0].flatten(0, 1)[batch.predicts].double()
    z = transformed(model, states @ head.weight.detach().double().T)
    exact, rounded = (x[range(len(x)), batch.targets] - x.exp().sum(-1).log() for x in (z, logits.double()))
    engine = LogprobEngine(model)
    for response, actual in enumerate(torch.cat(engine(batch)).tolist()):
        at = batch.response == response
        assert actual == pytest.approx(exact[at].sum().item(), rel=1e-5)
    assert (exact - rounded).abs().max() > 1e-3


@LAYOUTS
@WAYS
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_autocast(architecture: str, packed: bool, streamed: bool) -> None:
    """bf16-mixed: float32 weights, no less exact than transformers' own logits under autocast."""
    wanted = expected(architecture)

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", BF16)

    with autocast():
        theirs = errors(naive.long_way(kept(architecture), wanted.reference()), wanted)
    model = kept(architecture, packed=packed)
    actual = by_engine(model, wanted.reference(), packed=packed, streamed=streamed, forward=autocast)
    assert actual.logprobs.dtype == F32
    for what, size in errors(actual, wanted).items():
        assert size < 1.5 * theirs[what], what
        assert size < (0.25 if what == "log-prob" else 0.08), what


@LAYOUTS
@WAYS
@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("gpt2", {"tie_word_embeddings": False}),
        ("phi", {}),  # a bias on the head
        ("mixtral", {}),
        ("gemma3_text", {"final_logit_softcapping": 1.5}),
    ],
)
def test_heads(architecture: str, keys: dict[str, Any], packed: bool, streamed: bool) -> None:
    """Tied and untied, biased, behind experts."""
    model = make(architecture, packed=packed, **keys)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    wanted = naive.long_way(wide_copy(model))
    assert_equal(by_engine(model, wanted.reference(), packed=packed, streamed=streamed), wanted)


@WAYS
@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("mistral", {"sliding_window": 5}),
        ("gemma2", {"sliding_window": 5}),
        ("bloom", {}),
        ("falcon", {}),
        ("mamba", {}),
        ("gpt_oss", {}),
        ("qwen3_next", {}),
    ],
)
def test_padded_rows_of_models_that_packed_rows_are_not_for(
    architecture: str, keys: dict[str, Any], streamed: bool
) -> None:
    model = make(architecture, **keys)
    wanted = naive.long_way(wide_copy(model))
    actual = by_engine(model, wanted.reference(), packed=False, streamed=streamed)
    # the linear attention computes in float32 whatever the model's dtype, the expected values included
    assert_equal(actual, wanted, 1e-4 if architecture == "qwen3_next" else 1e-5)


@EVERY
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_padded_on_either_side(architecture: str, side: str) -> None:
    """Generated rows are padded on the left; the padding and its gradient change nothing."""
    model, factors = kept(architecture), torch.linspace(-1, 1, 2 * len(PAIRS))
    rows = naive.sequences(PAIRS)
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    ids, tokens, responses = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(3))
    for row, (prompt, response) in enumerate(rows):
        length = len(prompt) + len(response)
        start = longest - length if side == "left" else 0
        ids[row, start : start + length] = torch.tensor(prompt + response)
        tokens[row, start : start + length] = 1
        responses[row, start + len(prompt) : start + length] = 1
    actual = response_logprobs(model, ids, tokens.bool(), responses.bool())
    torch.testing.assert_close(actual.double(), expected(architecture).logprobs.flatten(), rtol=1e-5, atol=1e-5)
    wide = wide_copy(model)
    wanted = naive.gradients((naive.logprobs(wide, PAIRS).flatten() * factors).sum(), wide)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in naive.gradients((actual * factors).sum(), model).items():
        assert (gradient - wanted[name]).abs().max() < 1e-5 * max(float(wanted[name].abs().max()), 0.01 * largest), name


@LAYOUTS
def test_the_pad_id_inside_a_response_is_a_token_like_any_other(packed: bool) -> None:
    """Some tokenizers pad with EOS: what is written down decides, never ids."""
    pairs = [TokenizedPair([5, 6], [0, 9, 0], [0], None, None, 0, ""), PAIRS[2]]
    model = kept("llama", packed=packed)
    actual = torch.stack(pair_logprobs(model, collate(pairs, 0, layout="packed" if packed else "padded")))
    torch.testing.assert_close(actual.double(), naive.logprobs(wide_copy(model), pairs), rtol=1e-5, atol=1e-5)


def test_any_pad_id_gives_the_same() -> None:
    model = kept("opt")  # whose embedding of one of them is set apart
    actual = [torch.stack(pair_logprobs(model, collate(PAIRS, pad))) for pad in (0, 2, 60)]
    for other in actual[1:]:
        torch.testing.assert_close(other, actual[0], rtol=0, atol=0)


@EVERY
def test_the_pairs_tell_wrong_attention(architecture: str) -> None:
    """The first token of a prompt changes what follows by far more than any tolerance here."""
    pair = PAIRS[2]
    other = dataclasses.replace(pair, prompt_ids=[(pair.prompt_ids[0] + 1) % VOCABULARY, *pair.prompt_ids[1:]])
    model = kept(architecture)
    with torch.no_grad():
        assert (naive.logprobs(model, [pair]) - naive.logprobs(model, [other])).abs().min() > 0.01


@pytest.mark.parametrize(
    ("architecture", "key", "off"),
    [
        ("gemma2", "final_logit_softcapping", None),
        ("gemma2", "attn_logit_softcapping", None),
        ("cohere", "logit_scale", 1.0),
        ("granite", "logits_scaling", 1.0),
    ],
)
def test_the_models_tell_wrong_logits(architecture: str, key: str, off: float | None) -> None:
    changed: dict[str, Any] = {key: off}
    with torch.no_grad():
        without = naive.logprobs(make(architecture, **changed), PAIRS)
    assert (without - expected(architecture).logprobs).abs().max() > 0.1
