"""Sampling: reproducible, independent of the batch, and aware of where a response ends."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from caldpo.data.end_tokens import end_tokens, inner_end_notes, response_text, trained_ends
from caldpo.data.pair import TokenizedPair
from caldpo.models.prompt_batching import prompt_batching
from caldpo.models.sampling import LEAST_TEMPERATURE, sampling_notes
from tests.helpers.messages import names, refused
from tests.helpers.tiny import sample_responses, tiny_model, tiny_tokenizer

MODEL = tiny_model()
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]


def sample(prompts: list[list[int]] = PROMPTS, seed: int = 0, temperature: float = 1.0, **keys: int) -> list[list[int]]:
    settings = {"max_new_tokens": 12, **keys}
    return sample_responses(MODEL, tiny_tokenizer(), prompts, temperature=temperature, seed=seed, **settings)


def test_seed_decides_and_global_state_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = sample(seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert sample(seed=3) == first
    assert sample(seed=4) != first


def test_likeliest_tokens_do_not_depend_on_the_batch() -> None:
    """Left padding and other prompts change nothing."""
    together = sample(temperature=0.0)
    alone = [sample([p], temperature=0.0)[0] for p in PROMPTS]
    assert together == alone == sample(temperature=0.0, batch_size=2)


def test_likeliest_tokens_by_hand() -> None:
    model, ids = tiny_model(), list(PROMPTS[0])
    for _ in range(12):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    assert sample([PROMPTS[0]], temperature=0.0)[0] == ids[3:]


def test_a_response_ends_with_its_first_eos() -> None:
    responses = sample([[i] for i in range(4, 44)], max_new_tokens=40)
    assert any(r[-1] == 2 for r in responses)
    for response in responses:
        assert 2 not in response[:-1]
        assert response[-1] == 2 or len(response) == 40


def test_sampling_follows_the_model() -> None:
    """First tokens over many samples have the model's own frequencies (no top-k or top-p is cut off)."""
    model = tiny_model()
    expected = model(torch.tensor([[5]])).logits[0, -1].double().softmax(-1)
    drawn = [r[0] for r in sample([[5]] * 4000, max_new_tokens=1, batch_size=4000)]
    found = torch.bincount(torch.tensor(drawn), minlength=44) / 4000
    assert (found - expected).abs().max() < 4.5 * (expected * (1 - expected) / 4000).sqrt().max()


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_the_model_is_restored(training: bool) -> None:
    model = tiny_model().train(training)
    sample_responses(model, tiny_tokenizer(), [[5]], max_new_tokens=2, temperature=1.0, seed=0)
    assert model.training is training


# what a checkpoint's generation_config.json may ask for
OWN: list[dict[str, Any]] = [
    {"repetition_penalty": 1.8},
    {"min_p": 0.5, "do_sample": True},
    {"top_k": 1, "do_sample": True},
    {"top_p": 0.1, "do_sample": True},
    {"temperature": 0.05, "do_sample": True},
    {"typical_p": 0.1, "do_sample": True},
    {"epsilon_cutoff": 0.2, "do_sample": True},
    {"eta_cutoff": 0.5, "do_sample": True},
    {"top_h": 0.1, "do_sample": True},
    {"num_beams": 4, "length_penalty": -3.0, "early_stopping": True},
    {"no_repeat_ngram_size": 1},
    {"encoder_repetition_penalty": 3.0},
    {"bad_words_ids": [[i] for i in range(4, 30)]},
    {"suppress_tokens": list(range(4, 30))},
    {"begin_suppress_tokens": list(range(4, 30))},
    {"forced_bos_token_id": 9},
    {"forced_eos_token_id": 9},
    {"sequence_bias": {(5,): 30.0}},
    {"exponential_decay_length_penalty": (1, 9.0)},
    {"min_length": 40},
    {"min_new_tokens": 12},
    {"max_length": 2},
    {"max_time": 1e-9},
    {"renormalize_logits": True, "temperature": 2.0, "do_sample": True},
    {"guidance_scale": 4.0},
    {"watermarking_config": {"greenlist_ratio": 0.2, "bias": 20.0}},
    {"stop_strings": "w1"},
    {"prompt_lookup_num_tokens": 2},
    {"assistant_early_exit": 1},
    {"num_return_sequences": 3, "do_sample": True},
    {"return_dict_in_generate": True, "output_logits": True},
    {"cache_implementation": "static"},
    {"use_cache": False},
    {"token_healing": True},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"dola_layers": "low"},
    {"own_entry": [1, 2]},
]


@pytest.mark.parametrize("own", OWN, ids=lambda own: next(iter(own)))
def test_the_checkpoints_own_settings_have_no_part_in_samples(own: dict[str, Any]) -> None:
    model = tiny_model()
    model.generation_config = GenerationConfig(**own)
    before = copy.deepcopy(model.generation_config)
    for temperature in (1.0, 0.0):
        found = sample_responses(
            model, tiny_tokenizer(), PROMPTS, max_new_tokens=12, temperature=temperature, seed=3, batch_size=2
        )
        assert found == sample(seed=3, temperature=temperature, batch_size=2)
    assert model.generation_config == before


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampling_by_hand(temperature: float) -> None:
    """Token by token from the whole softmax of a forward pass without a cache, with the same draws."""
    model, prompts = tiny_model(), torch.tensor([[5, 6, 7], [8, 9, 10]])
    model.generation_config = GenerationConfig(repetition_penalty=1.3, min_p=0.2, do_sample=True, top_k=3)
    torch.manual_seed(4)
    ids = prompts
    for _ in range(8):
        with torch.no_grad():
            chances = (model(ids).logits[:, -1] / temperature).softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1)], dim=1)
    by_hand = [row[: row.index(2) + 1] if 2 in row else row for row in ids[:, 3:].tolist()]
    settings = {"max_new_tokens": 8, "temperature": temperature, "seed": 4}
    assert sample_responses(model, tiny_tokenizer(), prompts.tolist(), **settings) == by_hand


def test_an_adapter_takes_part_in_sampling_and_its_bases_settings_do_not() -> None:
    peft = pytest.importorskip("peft")
    base = tiny_model()
    base.generation_config = GenerationConfig(eos_token_id=[2, 9], repetition_penalty=1.5, num_beams=3)
    model = peft.get_peft_model(
        base, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    )
    before = copy.deepcopy(base.generation_config)
    ids = list(PROMPTS[0])
    for _ in range(12):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in (2, 9):
            break
    settings = {"max_new_tokens": 12, "temperature": 0.0, "seed": 0}
    assert sample_responses(model, tiny_tokenizer(), PROMPTS, **settings)[0] == ids[3:]
    assert base.generation_config == before
    with model.disable_adapter():
        assert sample_responses(model, tiny_tokenizer(), PROMPTS, **settings, ends=[2]) == sample(temperature=0.0)


def test_what_a_checkpoint_asks_for_is_said() -> None:
    model = tiny_model()
    assert sampling_notes(model, tiny_tokenizer(), end_tokens(tiny_tokenizer(), model)) == []
    model.generation_config = GenerationConfig(
        eos_token_id=2, repetition_penalty=1.3, num_beams=4, top_k=0, temperature=1.0, min_length=0, use_cache=True
    )
    (line,) = sampling_notes(model, tiny_tokenizer(), end_tokens(tiny_tokenizer(), model))
    names(line, "generation_config.json", "num_beams=4, repetition_penalty=1.3")
    model.generation_config = GenerationConfig(eos_token_id=[2, 9])
    (line,) = sampling_notes(model, tiny_tokenizer(), end_tokens(tiny_tokenizer(), model))
    assert line.endswith("<eos> (2), w5 (9)")


def test_temperatures_at_and_near_zero_take_the_likeliest_token_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    greedy = sample(temperature=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sample(temperature=LEAST_TEMPERATURE / 2) == sample(temperature=1e-320) == greedy
    assert sample(temperature=LEAST_TEMPERATURE) == greedy
    assert "generation flags" not in "".join(capfd.readouterr())


class TestEndTokens:
    """Which tokens end a response, and that samples end there."""

    def model(self, own: Any = None, config: Any = None) -> PreTrainedModel:
        model = tiny_model()
        model.generation_config = GenerationConfig(eos_token_id=own)
        model.config.eos_token_id = config
        return model

    @pytest.mark.parametrize(
        ("own", "config", "ends"),
        [
            (None, None, (2,)),
            (2, 2, (2,)),
            ([9, 2, 7], 2, (2, 9, 7)),
            (9, None, (2, 9)),
            (None, [5, 2], (2, 5)),
            (2, 5, (2,)),  # generate looks at generation_config.json, and an ordinary token may be a mere default
            (2, 1, (2, 1)),  # a special one is none
            ([-1, "</s>", True, None, 6], None, (2, 6)),
        ],
    )
    def test_all_that_the_settings_name(self, own: Any, config: Any, ends: tuple[int, ...]) -> None:
        assert end_tokens(tiny_tokenizer(), self.model(own, config)) == ends

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_samples_end_with_the_first_of_them_as_those_of_generate_do(self, temperature: float) -> None:
        others = [2, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
        long = {"max_new_tokens": 12, "temperature": temperature, "seed": 1}
        found = sample_responses(self.model(others), tiny_tokenizer(), PROMPTS, **long)
        plain = sample_responses(self.model(2), tiny_tokenizer(), PROMPTS, **long)
        cut = [next((r[: i + 1] for i, t in enumerate(r) if t in others), r) for r in plain]
        assert cut != plain
        if temperature == 0:  # else one row's end moves the draws of the others
            assert found == cut
        assert all(set(r[:-1]).isdisjoint(others) and (r[-1] in others or len(r) == 12) for r in found)

    def test_a_special_token_that_the_template_writes_after_a_turn_is_one(self) -> None:
        tokenizer = turn_tokenizer()
        assert trained_ends(tokenizer) == (2, 44)
        assert end_tokens(tokenizer, self.model(2)) == (2, 44)
        tokenizer.chat_template = "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"
        assert trained_ends(tokenizer) == (2,)
        tokenizer.chat_template = "{{ raise_exception('no') }}"
        assert trained_ends(tokenizer) == (2,)

    def test_trained_responses_that_go_on_after_one_are_counted(self) -> None:
        pairs = [
            TokenizedPair([5], [6, 9, 2], [7, 2], None, None, 0, ""),
            TokenizedPair([9], [6, 9], [9, 9], None, None, 1, ""),
        ]
        (line,) = inner_end_notes(tiny_tokenizer(), self.model([2, 9]), pairs)
        names(line, "2 training responses", "w5 (9)")
        assert inner_end_notes(tiny_tokenizer(), self.model([2, 9]), [pairs[0]][:0]) == []
        assert inner_end_notes(tiny_tokenizer(), self.model(2), pairs) == []

    def test_the_text_of_a_response_is_without_its_end(self) -> None:
        tokenizer = tiny_tokenizer()
        assert response_text(tokenizer, [5, 9, 9], (2, 9)) == "w1 w5"  # an ordinary token that ends it is no text
        assert response_text(tokenizer, [5, 9, 2], (2, 9)) == "w1 w5"
        assert response_text(tokenizer, [], (2,)) == ""


def turn_tokenizer() -> PreTrainedTokenizerBase:
    """The tiny tokenizer with a template that ends a turn with a special token of its own, 44, and a line."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w1 ' + m['content'] + ' <turn> w2 ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'w1 ' }}{% endif %}"
    )
    return tokenizer


def other_model(kind: str, **sizes: Any) -> PreTrainedModel:
    """A model of an architecture that is not like a decoder of today."""
    ids = {"vocab_size": 44, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, hidden_size=16, **ids, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "together", "sizes"),
    [
        # its state of a batch is not that of its rows (transformers 5.24)
        ("rwkv", "one at a time", {"num_hidden_layers": 2, "attention_hidden_size": 16, "intermediate_size": 32}),
        (
            "recurrent_gemma",
            "equal lengths",
            {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "attention_window_size": 8},
        ),
    ],
)
def test_a_recurrent_model_continues_prompts_as_alone(kind: str, together: str, sizes: dict[str, Any]) -> None:
    model = other_model(kind, **sizes)
    assert prompt_batching(model, device=model.device) == together
    prompts = [*PROMPTS, [15, 16, 17], [20]]
    settings = {"max_new_tokens": 8, "temperature": 0.0, "seed": 0}
    alone = [sample_responses(model, tiny_tokenizer(), [p], **settings)[0] for p in prompts]
    assert sample_responses(model, tiny_tokenizer(), prompts, **settings) == alone


class Crowd(torch.nn.Module):
    """Adds to every row what stands in the others."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + hidden.mean(dim=0, keepdim=True)


def test_what_depends_on_its_batch_mates_is_continued_alone() -> None:
    model = tiny_model()
    model.model.norm = torch.nn.Sequential(model.model.norm, Crowd())
    assert prompt_batching(model, device=model.device) == "one at a time"
    settings = {"max_new_tokens": 8, "temperature": 0.0, "seed": 0}
    alone = [sample_responses(model, tiny_tokenizer(), [p], **settings)[0] for p in PROMPTS]
    assert sample_responses(model, tiny_tokenizer(), PROMPTS, **settings) == alone


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}])
def test_rotary_embeddings_that_look_at_the_whole_batch(rope: dict[str, Any]) -> None:
    """A prompt that grows beyond 16 tokens rotates the others of its batch otherwise in transformers, not here."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=44,
        max_position_embeddings=16,
        rope_parameters=rope,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    prompts = [[5, 6, 7], [8, *range(9, 24)], [15, 16]]
    settings = {"max_new_tokens": 8, "temperature": 0.0, "seed": 0}
    alone = [sample_responses(model, tiny_tokenizer(), [p], **settings)[0] for p in prompts]
    assert sample_responses(model, tiny_tokenizer(), prompts, **settings) == alone


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_named(value: float, temperature: float) -> None:
    """The logit of w9 is bad wherever the hidden state of a row is: prompts 2 and 3 hold the token that makes it so."""
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[8] = value
    facts = ("run at step 4", "policy's logits", "sampling", "token 1", "2 of 3 prompts", "a.jsonl:2, a.jsonl:3")
    with refused(*facts, remedy="optim.lr"):
        sample_responses(
            model,
            tiny_tokenizer(),
            [[5, 6], [8], [9, 8]],
            max_new_tokens=1,
            temperature=temperature,
            seed=0,
            batch_size=1,
            whose="run at step 4: the policy's",
            names=["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"],
        )


def test_entries_of_the_vocabulary_that_are_never_drawn_may_be_minus_infinity() -> None:
    model = tiny_model()
    model.lm_head.weight.requires_grad_(False)
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: plain(hidden).index_fill(-1, torch.tensor([40, 41]), -torch.inf)
    found = sample_responses(model, tiny_tokenizer(), PROMPTS, max_new_tokens=8, temperature=1.0, seed=0)
    assert {40, 41}.isdisjoint(token for ids in found for token in ids)


def test_a_model_that_transformers_cannot_generate_with_is_named() -> None:
    """Trained without samples it can be all the same."""
    model = tiny_model()
    model.prepare_inputs_for_generation = None
    with refused(type(model).__name__, key="callbacks.samples.prompts", remedy="callbacks.samples.prompts=0"):
        sample_responses(model, tiny_tokenizer(), [[5, 6]], max_new_tokens=2, temperature=0.0, seed=0)
