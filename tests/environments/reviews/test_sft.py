"""The SFT stage: what it is fitted to, that it fits, and that its cache can be relied on."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldpo.environments import sft_policy as sft
from caldpo.environments.reviews import review_environment as environment
from caldpo.environments.reviews.review_environment import Reviews
from caldpo.environments.reviews.review_prompts import TITLES, parse_prompt
from caldpo.environments.reviews.review_reward import parse_sentence
from caldpo.environments.sft_policy import SftRecipe, build_tokenizer, fit_sft, sft_batches
from caldpo.models.tiny_model import TinyModel
from tests.helpers.messages import refused

SMALL = SftRecipe(
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    initializer_range=0.1,
    steps=60,
    batch_size=8,
    lr=1e-2,
    seed=0,
)
ARGUMENTS: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "initializer_range": 0.1,
    "sft_steps": 3,
    "sft_batch_size": 4,
    "sft_lr": 1e-2,
    "sft_seed": 0,
}


def test_batches_are_reviews_of_training_titles_with_the_response_masked() -> None:
    tokenizer = build_tokenizer(Reviews())
    prompts, well_formed = [], 0
    batches = list(sft_batches(Reviews(), dataclasses.replace(SMALL, steps=10), tokenizer))
    for input_ids, attended, response in batches:
        for ids, here, answer in zip(input_ids, attended, response, strict=True):
            prompt = str(tokenizer.decode(ids[here & ~answer], skip_special_tokens=True))
            review = ids[answer].tolist()
            assert ids[0] == tokenizer.bos_token_id
            assert review.count(tokenizer.eos_token_id) == 1
            assert review[-1] == tokenizer.eos_token_id
            assert (ids[~here] == tokenizer.pad_token_id).all()
            sentences = str(tokenizer.decode(review[:-1])).removesuffix(" .").split(" . ")
            well_formed += all(parse_sentence(s.split()) is not None for s in sentences)
            prompts.append(parse_prompt(prompt))
    assert len(prompts) == len(set(prompts)) == 80
    assert {p.title for p in prompts if p} <= set(TITLES["train"])
    assert well_formed > 60  # writers slip now and then


def test_fitting_learns_the_grammar() -> None:
    tokenizer = build_tokenizer(Reviews())
    model = fit_sft(Reviews(), SMALL)
    fresh = dataclasses.replace(SMALL, steps=1, batch_size=64, seed=99)
    input_ids, attended, response = next(sft_batches(Reviews(), fresh, tokenizer))
    with torch.no_grad():
        # transformers' own loss, on the response tokens
        nll = model(input_ids, attention_mask=attended.long(), labels=input_ids.masked_fill(~response, -100)).loss
    uniform = math.log(len(tokenizer))
    assert nll.item() < uniform / 2
    assert not model.training


def test_fitting_is_reproducible_and_leaves_global_state_alone() -> None:
    recipe = dataclasses.replace(SMALL, steps=5)
    threads = torch.get_num_threads()
    torch.manual_seed(7)
    random.seed(7)
    first = fit_sft(Reviews(), recipe)
    drawn = torch.rand(3), random.random()
    torch.manual_seed(7)
    random.seed(7)
    expected = torch.rand(3), random.random()
    second = fit_sft(Reviews(), recipe)
    other = fit_sft(Reviews(), dataclasses.replace(recipe, seed=1))
    assert torch.equal(drawn[0], expected[0])
    assert drawn[1] == expected[1]
    assert torch.get_num_threads() == threads
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)


def test_the_digest_follows_everything_that_defines_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {SMALL.digest(Reviews())}
    for field in dataclasses.fields(SMALL):
        digests.add(dataclasses.replace(SMALL, **{field.name: getattr(SMALL, field.name) * 2 + 1}).digest(Reviews()))
    monkeypatch.setitem(environment.CORPUS, "plain", 0.5)
    digests.add(SMALL.digest(Reviews()))
    monkeypatch.setitem(environment.WRITERS, "plain", dataclasses.replace(environment.WRITERS["plain"], strong=0.31))
    digests.add(SMALL.digest(Reviews()))
    assert len(digests) == 1 + len(dataclasses.fields(SMALL)) + 2
    monkeypatch.undo()
    assert SMALL.digest(Reviews()) in digests


def test_the_policy_is_fitted_once_and_loaded_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TinyModel(**ARGUMENTS, cache=str(tmp_path))
    first = source.load_policy()

    def never(environment: object, recipe: SftRecipe) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(sft, "fit_sft", never)
    with torch.no_grad():
        first.lm_head.weight.zero_()
    second = TinyModel(**ARGUMENTS, cache=str(tmp_path)).load_policy()
    assert second.lm_head.weight.abs().sum() > 0
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    assert folder.name in source.identity()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for a, b in zip(loaded.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == source.load_tokenizer().get_vocab()
    with pytest.raises(AssertionError, match="fitted again"):
        TinyModel(**{**ARGUMENTS, "sft_seed": 1}, cache=str(tmp_path)).load_policy()


def test_a_damaged_cache_names_the_folder_to_delete(tmp_path: Path) -> None:
    source = TinyModel(**ARGUMENTS, cache=str(tmp_path))
    source.load_policy()
    (weights,) = tmp_path.glob("*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with refused("cached model", weights.parent, remedy="delete the folder"):
        source.load_policy()


def test_heads_have_to_divide_the_width() -> None:
    with refused("multiple", "model.hidden_size=16", key="model.num_heads", value=3):
        TinyModel(**{**ARGUMENTS, "num_heads": 3}, cache="nowhere")
