"""Which models get packed rows and which padded ones, and packed pairs do not attend to each other."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.logprobs import LogprobEngine
from caldpo.logprobs.layout import choose_layout, why_not_packed
from caldpo.logprobs.packed_attention import EAGER, SDPA
from caldpo.models.adapters import Lora
from caldpo.models.tabular_model import TabularConfig, TabularLM
from tests.helpers.logprobs import pair_logprobs, response_logprobs
from tests.helpers.messages import names, refused
from tests.logprobs import naive
from tests.logprobs.models import PARITY, VOCABULARY, kept, make, wide_copy
from tests.logprobs.naive import LIMIT, PAIRS

CAN = [*PARITY, "phi", "mixtral", "gemma3_text"]
CANNOT: dict[str, tuple[str, dict[str, Any], tuple[Any, ...]]] = {
    "mamba": ("mamba", {}, ("state",)),
    "bloom": ("bloom", {}, ("attention interface",)),
    "falcon": ("falcon", {}, ("attention interface",)),
    "gpt_oss": ("gpt_oss", {}, ("s_aux",)),
    "linear attention": ("qwen3_next", {}, ("state",)),
    "mistral's window": ("mistral", {"sliding_window": LIMIT - 1}, ("sliding_window", LIMIT - 1, LIMIT)),
    "gemma's window": ("gemma2", {"sliding_window": 4}, ("sliding_window", 4, LIMIT)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", CAN)
def test_packed_where_it_gives_the_same(architecture: str, dtype: torch.dtype) -> None:
    model = make(architecture, dtype=dtype)
    before = model.config._attn_implementation
    layout, reason = choose_layout("auto", model, LIMIT)
    assert layout == "packed"
    names(reason, "prompt", "padding")
    assert model.config._attn_implementation == (EAGER if before == "eager" else SDPA)
    assert choose_layout("packed", model, LIMIT)[0] == "packed"  # and once more


@pytest.mark.parametrize("name", CANNOT)
def test_padded_where_it_does_not(name: str) -> None:
    """Chosen by itself with the reason, refused where packed was asked for, and the model as it was before."""
    architecture, keys, facts = CANNOT[name]
    model = make(architecture, **keys).train()
    before, expected = model.config._attn_implementation, pair_logprobs(model.eval(), collate(PAIRS, 0))
    model.train()
    layout, reason = choose_layout("auto", model, LIMIT)
    assert layout == "padded"
    names(reason, *facts)
    with refused(type(model).__name__, *facts, key="layout", value="packed", remedy=("layout=auto", "layout=padded")):
        choose_layout("packed", model, LIMIT)
    assert model.config._attn_implementation == before
    assert model.training
    torch.testing.assert_close(pair_logprobs(model.eval(), collate(PAIRS, 0)), expected, rtol=0, atol=0)


def test_padded_as_configured_leaves_the_model_alone() -> None:
    model = make("llama")
    layout, reason = choose_layout("padded", model, LIMIT)
    assert layout == "padded"
    names(reason, "configured")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("window", [LIMIT - 1, LIMIT, LIMIT + 1])
def test_a_window_as_long_as_the_longest_sequence_does_no_harm(window: int) -> None:
    model = make("mistral", sliding_window=window)
    assert (why_not_packed(model, LIMIT) is None) == (window >= LIMIT)
    if window < LIMIT:
        return
    assert choose_layout("auto", model, LIMIT)[0] == "packed"
    actual = torch.stack(pair_logprobs(model, collate(PAIRS, 0, layout="packed")))
    torch.testing.assert_close(actual.double(), naive.logprobs(wide_copy(model), PAIRS), rtol=1e-5, atol=1e-5)


def test_a_disabled_window_does_not_prevent_packing() -> None:
    assert why_not_packed(make("qwen2", sliding_window=4, use_sliding_window=False), LIMIT) is None
    why = why_not_packed(make("qwen2", sliding_window=4, use_sliding_window=True), LIMIT)
    names(why, "sliding_window", 4, LIMIT)


def test_layers_of_a_kind_that_is_not_known() -> None:
    model = make("qwen3", layer_types=["full_attention", "sliding_attention"])
    assert why_not_packed(model, LIMIT) is None
    model.config.layer_types = ["full_attention", "short_convolution"]
    names(why_not_packed(model, LIMIT), "layers", "short_convolution")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_eager_attention_stays_eager(architecture: str) -> None:
    """Asked for by its name, it may have been asked for its exact arithmetic."""
    model = make(architecture)
    model.set_attn_implementation("eager")
    expected = naive.logprobs(wide_copy(model), PAIRS)
    assert choose_layout("auto", model, LIMIT)[0] == "packed"
    assert model.config._attn_implementation == EAGER
    for layout in ("packed", "padded"):
        actual = torch.stack(pair_logprobs(model, collate(PAIRS, 0, layout=layout)))
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_under_an_adapter_the_base_is_made_ready() -> None:
    policy: Any = Lora(rank=2).apply(make("llama"))
    assert choose_layout("auto", policy, LIMIT)[0] == "packed"
    assert policy.get_base_model().config._attn_implementation == SDPA


def test_a_model_without_attention() -> None:
    """The table of logits, whose next token depends on the present one alone, comes in padded rows."""
    layout, reason = choose_layout("auto", TabularLM(TabularConfig(3, 4)), LIMIT)
    assert layout == "padded"
    names(reason, "attention interface")


def test_what_the_configuration_does_not_say_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that looks at its neighbour in the row, as a convolution does, behind ordinary attention."""
    model = make("llama")
    mlp = model.model.layers[0].mlp
    mlp.register_forward_hook(lambda _, inputs, output: output + output.roll(1, dims=1))
    layout, reason = choose_layout("auto", model, LIMIT)
    assert layout == "padded"
    names(reason, "packed", "log-probs")
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr("caldpo.logprobs.layout.why_not_packed", lambda *_: None)
    for architecture in ("mamba", "bloom", "falcon", "gpt_oss", "qwen3_next"):
        assert choose_layout("auto", make(architecture), LIMIT)[0] == "padded"


@pytest.mark.parametrize("architecture", CAN)
def test_all_else_is_as_before(architecture: str) -> None:
    """Generation, its cache, left-padded rows and padded batches, of a model that understands packed rows."""
    before, after = make(architecture), make(architecture, packed=True)
    ids = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
    tokens = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    settings: dict[str, Any] = {"attention_mask": tokens, "max_new_tokens": 6, "do_sample": False, "use_cache": True}
    texts = [
        model.generate(ids, output_logits=True, return_dict_in_generate=True, **settings) for model in (before, after)
    ]
    assert texts[0].sequences.tolist() == texts[1].sequences.tolist()
    for one, other in zip(texts[0].logits, texts[1].logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    responses = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]).bool()
    rows = [response_logprobs(model, ids, tokens.bool(), responses) for model in (before, after)]
    torch.testing.assert_close(*rows, rtol=1e-5, atol=1e-5)
    padded = [torch.stack(pair_logprobs(model, collate(PAIRS, 0))) for model in (before, after)]
    torch.testing.assert_close(*padded, rtol=1e-5, atol=1e-5)


def changed(ids: list[int], seed: int) -> list[int]:
    """As many other tokens."""
    draw = random.Random(seed)
    return [(token + draw.randrange(1, VOCABULARY)) % VOCABULARY for token in ids]


def packed_logprobs(model: Any, pairs: list[TokenizedPair]) -> list[list[float]]:
    return torch.stack(LogprobEngine(model)(collate(pairs, 0, layout="packed"))).tolist()


@pytest.mark.parametrize("architecture", CAN)
def test_a_response_sees_its_prompt_and_nothing_else_of_the_row(architecture: str) -> None:
    """To the last bit: what it does not see takes part in no sum of its own."""
    # experts multiply tokens of all pairs together, in matrices whose shapes change with the tokens
    rounding = 1e-6 if architecture == "mixtral" else 0
    model = kept(architecture, packed=True)
    base = packed_logprobs(model, PAIRS)
    for place in (0, 2, 4):
        pair = PAIRS[place]
        others = [i for i in range(len(PAIRS)) if i != place]
        for part in ("prompt_ids", "chosen_ids", "rejected_ids"):
            pairs = [*PAIRS]
            other: dict[str, Any] = {part: changed(getattr(pair, part), place)}
            pairs[place] = dataclasses.replace(pair, **other)
            actual = packed_logprobs(model, pairs)
            far = [
                [abs(x / y - 1) > rounding for x, y in zip(*both, strict=True)]
                for both in zip(actual, base, strict=True)
            ]
            assert not any(side[i] for side in far for i in others)
            moved = [side[place] for side in far]
            assert moved == [part != "rejected_ids", part != "chosen_ids"]


@pytest.mark.parametrize("architecture", CAN)
def test_gradients_stay_within_a_pair(architecture: str) -> None:
    """The loss of one response reaches the tokens of its prompt and its own, and none of the others."""
    model, batch = kept(architecture, packed=True), collate(PAIRS, 0, layout="packed")
    states: list[torch.Tensor] = []

    def watch(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        states.append(output.detach().requires_grad_())
        return states[-1]

    with model.get_input_embeddings().register_forward_hook(watch):
        _, rejected = LogprobEngine(model)(batch)
    place = 2
    (gradient,) = torch.autograd.grad(rejected[place], states[-1])
    assert batch.spans is not None
    start = sum(sum(span) for span in batch.spans[:place])
    prompt, chosen, length = batch.spans[place]
    own = [*range(start, start + prompt), *range(start + prompt + chosen, start + prompt + chosen + length - 1)]
    reached = gradient[0].abs().sum(-1).nonzero().flatten().tolist()
    assert reached == own  # all but the last token, which predicts nothing


def test_an_attention_that_packed_rows_replace_is_named() -> None:
    """FlexAttention is asked for, PyTorch's SDPA is what packed rows get."""
    model = make("llama")
    model.set_attn_implementation("flex_attention")
    layout, reason = choose_layout("auto", model, LIMIT)
    assert layout == "packed"
    names(reason, "prompt", "padding", "SDPA", "flex_attention")
    assert model.config._attn_implementation == SDPA


@pytest.mark.parametrize("requested", ["auto", "packed"])
def test_non_finite_weights_are_refused(requested: Any) -> None:
    """In the body, where they reach the log-probs, and in the head."""
    for name in ("model.norm.weight", "lm_head.weight"):
        model = make("llama")
        model.get_parameter(name).data[3] = float("nan")
        with refused("logits", "NaN", key="model", remedy=("float16", "bfloat16")):
            choose_layout(requested, model, LIMIT)
