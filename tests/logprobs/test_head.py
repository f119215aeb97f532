"""The transform between a model's head and its logits is found, or the model's own logits are used."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from caldpo.data.collate import Layout, collate
from caldpo.logprobs import LogprobEngine
from caldpo.logprobs.head import NoHeadError, head_layer, output_head
from caldpo.logprobs.lm_head_ops import LogitTransform
from caldpo.models.model_forward import NonFiniteLogitsError
from tests.helpers.logprobs import pair_logprobs
from tests.helpers.messages import names, refused
from tests.logprobs import naive
from tests.logprobs.models import PARITY, VOCABULARY, kept, make, transformed, wide_copy
from tests.logprobs.naive import PAIRS

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])


@pytest.mark.parametrize("architecture", PARITY)
@DTYPES
def test_the_transform_of_every_make(architecture: str, dtype: torch.dtype) -> None:
    """Exactly the number of the configuration, however coarsely the logits show it."""
    model = make(architecture, dtype=dtype)
    head = output_head(model)
    assert head.layer is model.get_output_embeddings()
    expected = {
        "gemma2": LogitTransform(cap=2.0),
        "cohere": LogitTransform(scale=0.5),
        "granite": LogitTransform(scale=1 / 2.5),
    }
    assert head.transform == expected.get(architecture, LogitTransform())


@pytest.mark.parametrize(
    ("architecture", "keys", "expected"),
    [
        ("gemma2", {"final_logit_softcapping": 30.0}, LogitTransform(cap=30.0)),
        ("gemma2", {"final_logit_softcapping": 50.0}, LogitTransform(cap=50.0)),
        ("gemma2", {"final_logit_softcapping": None}, LogitTransform()),
        ("cohere", {"logit_scale": 0.0625}, LogitTransform(scale=0.0625)),
        ("cohere", {"logit_scale": 1.0}, LogitTransform()),
        ("granite", {"logits_scaling": 8.0}, LogitTransform(scale=0.125)),
        ("granite", {"logits_scaling": 0.1, "residual_multiplier": 0.1}, LogitTransform(scale=10.0)),
    ],
)
@DTYPES
def test_the_usual_numbers(
    architecture: str, keys: dict[str, Any], expected: LogitTransform, dtype: torch.dtype
) -> None:
    """A cap of 50 shows only in large logits."""
    assert output_head(make(architecture, dtype=dtype, **keys)).transform == expected


class Wrapped(nn.Module):
    """A causal language model whose logits a function changes after the head."""

    def __init__(self, change: Any = None, *, names_head: bool = True, **settings: Any) -> None:
        super().__init__()
        self.inner, self.change, self.names_head = make("llama"), change, names_head
        self.config = self.inner.config
        for name, value in settings.items():
            setattr(self, name, value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.inner.lm_head if self.names_head else None

    def forward(self, **inputs: Any) -> CausalLMOutput:
        output = self.inner(**inputs)
        if self.change is not None:
            output.logits = self.change(output.logits)
        return output


def test_a_scale_and_a_cap_together() -> None:
    model = Wrapped(lambda z: 20 * torch.tanh(z * 0.5 / 20), my_scale=0.5)
    model.config.final_logit_softcapping = 20.0
    assert output_head(model).transform == LogitTransform(scale=0.5, cap=20.0)


def test_a_scale_that_only_the_model_itself_knows() -> None:
    assert output_head(Wrapped(lambda z: z / 3.0, output_multiplier=1 / 3.0)).transform.scale == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda z: z + 3 * torch.arange(z.shape[-1]), ("scaling", "soft-capping")),
        (lambda z: z.relu(), ("scaling", "soft-capping")),
        (lambda z: z.log_softmax(-1), ("scaling", "soft-capping")),
        (lambda z: 1.7 * z, ("scaling", "soft-capping")),  # a number that nothing names
        (lambda z: 11 * torch.tanh(z / 11), ("scaling", "soft-capping")),
        (lambda z: z[..., :-1], ("logits", "output head")),
    ],
)
def test_other_functions_are_refused(change: Any, facts: tuple[str, ...]) -> None:
    with refused(*facts, kind=NoHeadError):
        output_head(Wrapped(change))


def test_a_padding_token_whose_embedding_is_zero() -> None:
    """The question is asked with a token; its own hidden state must not matter."""
    for architecture in ("llama", "opt", "gemma2", "granite"):
        model = make(architecture, tie_word_embeddings=False)
        with torch.no_grad():
            model.get_input_embeddings().weight.zero_()
        assert output_head(model).transform == output_head(kept(architecture)).transform


def test_a_head_of_zeros() -> None:
    """As some start from: all logits are 0, and no number is asked of 0 / 0."""
    model = make("llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert output_head(model).transform == LogitTransform()
    chosen, _ = pair_logprobs(model, collate(PAIRS, 0))
    lengths = torch.tensor([len(pair.chosen_ids) for pair in PAIRS])
    torch.testing.assert_close(chosen, -lengths * torch.tensor(float(VOCABULARY)).log())


def test_asking_leaves_the_model_as_it_was() -> None:
    model = make("llama", attention_dropout=0.5).train()
    before = torch.random.get_rng_state()
    output_head(model)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.lm_head._forward_pre_hooks
    assert not model.lm_head._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


class Quantised(nn.Module):
    """A head whose weight is no floating-point matrix."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.scale = layer.weight.detach().abs().max() / 127
        self.weight = nn.Buffer((layer.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ (self.weight * self.scale).T


class Normalised(nn.Linear):
    """A linear layer by name alone."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(nn.functional.normalize(hidden, dim=-1))


def quantised() -> Any:
    model = make("llama")
    model.set_output_embeddings(Quantised(model.lm_head))
    return model


def normalised() -> Any:
    model = make("llama")
    layer = Normalised(16, VOCABULARY, bias=False)
    layer.weight = model.lm_head.weight
    model.set_output_embeddings(layer)
    return model


NO_HEAD = {
    "quantised": (quantised, ("Quantised", "linear layer")),
    "more than a matrix": (normalised, ("Normalised", "matrix")),
    "unnamed": (lambda: Wrapped(names_head=False), ("no output head",)),
    "another function": (lambda: Wrapped(lambda z: z.relu()), ("scaling", "soft-capping")),
    "none at all": (lambda: Bare(), ("no output head",)),
}


class Bare(nn.Module):
    """Nothing but a forward of few arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make("llama")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> CausalLMOutput:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


@pytest.mark.parametrize("kind", NO_HEAD)
@pytest.mark.parametrize("streamed", [False, True])
def test_without_a_head_the_model_computes_its_own_logits(
    kind: str, streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Announced with the reason, once, and as exact as ever, gradients included."""
    build, facts = NO_HEAD[kind]
    model, batch = build(), collate(PAIRS, 0)
    engine = LogprobEngine(model)
    factors = torch.linspace(-1, 1, 2 * len(PAIRS)).view(2, -1)

    def weighted(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
        return (chosen * factors[0, rows] + rejected * factors[1, rows]).sum()

    with caplog.at_level(logging.WARNING, logger="caldpo"):
        if streamed:
            value, *sides = engine.loss(batch, weighted)
        else:
            sides = list(engine(batch))
            value = weighted(sides[0], sides[1], slice(None))
        engine(batch)
    assert engine.head is None
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    names(said[0], type(model).__name__, *facts)
    expected = naive.logprobs(model, PAIRS)
    torch.testing.assert_close(torch.stack(sides).detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    theirs = naive.gradients((expected * factors).sum(), model)
    for name, gradient in naive.gradients(value, model).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_where_there_is_a_head_the_plain_path_gives_the_same(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for architecture in ("llama", "gemma2", "cohere", "granite"):
        model, batch = kept(architecture, packed=layout == "packed"), collate(PAIRS, 0, layout=layout)
        plain = LogprobEngine(model)
        plain._head_examined = True  # and there is none
        assert plain.head is None
        torch.testing.assert_close(plain(batch), LogprobEngine(model)(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("head", [True, False])
def test_the_head_sees_no_more_than_it_must(architecture: str, head: bool) -> None:
    """One hidden state, so that a model of any make runs through; without a known head the responses' alone."""
    model, batch = kept(architecture), collate(PAIRS, 0)
    engine, seen = LogprobEngine(model), []
    assert engine.head is not None
    if not head:
        engine._head = None
    layer = head_layer(model)
    assert layer is not None
    with layer.register_forward_hook(lambda _, inputs, output: seen.append(output.numel() // output.shape[-1])):
        engine(batch)
    assert seen == [1 if head else len(batch.targets)]
    assert not layer._forward_pre_hooks
    assert model(batch.input_ids).logits.shape[:2] == batch.input_ids.shape  # and afterwards it is as before


def test_what_is_found_is_what_the_model_computes() -> None:
    """Of any hidden state, not only of the one that was asked with."""
    hidden = 5 * torch.randn(7, 16, generator=torch.Generator().manual_seed(1))
    for architecture in PARITY:
        head = output_head(kept(architecture))
        with torch.no_grad():
            z = nn.functional.linear(hidden, head.layer.weight, head.layer.bias)
            expected = transformed(wide_copy(kept(architecture)), z.double())
            torch.testing.assert_close(head.transform(z).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (float("inf"), torch.float16)])
def test_a_head_that_makes_no_numbers_is_no_unknown_kind_of_head(value: float, dtype: torch.dtype) -> None:
    model = make("llama", dtype=dtype)
    model.lm_head.weight.data[5, 1] = value
    with refused("logits", "NaN", key="model", remedy=("float16", "bfloat16"), kind=NonFiniteLogitsError) as caught:
        LogprobEngine(model)(collate(PAIRS, 0))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_logits_that_overflow_behind_the_head() -> None:
    with pytest.raises(NonFiniteLogitsError):
        output_head(Wrapped(lambda z: z * 1e38 * 1e38))


def test_tokens_that_a_model_rules_out_are_no_broken_weights() -> None:
    """Minus infinity is how a token is ruled out; such a model's own logits are taken."""
    ruled_out = torch.zeros(VOCABULARY).masked_fill(torch.arange(VOCABULARY) == 1, -torch.inf)
    with pytest.raises(NoHeadError):
        output_head(Wrapped(lambda z: z + ruled_out))
