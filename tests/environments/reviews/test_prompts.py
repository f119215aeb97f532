"""Prompts parse back, are different from one another, and held-out titles stay held out."""

from __future__ import annotations

import random

import pytest

from caldpo.environments.reviews.review_prompts import TITLES, Prompt, parse_prompt, sample_prompts
from caldpo.environments.reviews.vocabulary import ASPECTS, TITLE_FIRST, TITLE_SECOND, TONES
from tests.helpers.messages import refused

EXAMPLE = "Write a warm review of silent garden : plot , music , acting ."


def test_a_prompt_as_text() -> None:
    prompt = Prompt("silent garden", ("plot", "music", "acting"), "warm")
    assert str(prompt) == EXAMPLE
    assert parse_prompt(EXAMPLE) == prompt
    assert parse_prompt(f"  {EXAMPLE.replace(' ', '  ')}\n") == prompt


@pytest.mark.parametrize("split", ["train", "test"])
def test_sampled_prompts_parse_back_and_differ(split: str) -> None:
    prompts = sample_prompts(split, 2000, random.Random(1))  # type: ignore[arg-type]
    assert [parse_prompt(str(p)) for p in prompts] == prompts
    assert len(set(prompts)) == 2000
    assert {p.title for p in prompts} <= set(TITLES[split])  # type: ignore[index]
    assert all(len(set(p.aspects)) == 3 for p in prompts)
    assert {p.tone for p in prompts} == set(TONES)


def test_no_title_is_in_both_splits_but_every_word_is() -> None:
    train, test = set(TITLES["train"]), set(TITLES["test"])
    assert not train & test
    assert len(train | test) == len(TITLE_FIRST) * len(TITLE_SECOND)
    for titles in (train, test):
        words = {word for title in titles for word in title.split()}
        assert words == {*TITLE_FIRST, *TITLE_SECOND}


def test_all_prompts_can_be_drawn_and_no_more() -> None:
    everything = len(TITLES["test"]) * 8 * 7 * 6 * len(TONES)
    assert len(set(sample_prompts("test", everything, random.Random(0)))) == everything
    with refused(f"{everything:,}", "test prompts", key="data.source.test_pairs", value=everything + 1):
        sample_prompts("test", everything + 1, random.Random(0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Write a review",
        EXAMPLE.removesuffix(" ."),
        EXAMPLE + " .",
        EXAMPLE.replace("warm", "lukewarm"),
        EXAMPLE.replace("plot", "weather"),
        EXAMPLE.replace("plot", "music"),
        EXAMPLE.replace("Write", "write"),
        EXAMPLE.replace(" , ", " and "),
    ],
)
def test_other_strings_are_no_prompts(text: str) -> None:
    assert parse_prompt(text) is None


def test_signs() -> None:
    signs = {tone: Prompt("a b", ASPECTS[:3], tone).sign for tone in TONES}
    assert signs == {"warm": 1, "glowing": 1, "harsh": -1, "scathing": -1}
