"""The IMDb task from end to end with tiny random models; rewards and labels computed a second way."""

from __future__ import annotations

import itertools
import math
import random

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from caldpo.data.load import load_pairs
from caldpo.data.raw_row import PairSource
from caldpo.data.sources import imdb
from caldpo.data.sources.imdb import ImdbSentiment, label_pairs
from tests.helpers.messages import refused

WORDS = [
    "this",
    "movie",
    "was",
    "great",
    "bad",
    "a",
    "very",
    "long",
    "plot",
    "with",
    "actors",
    "I",
    "saw",
    "it",
]


def tokenizer() -> PreTrainedTokenizerFast:
    """Words with their leading space, as in GPT-2's vocabulary; no special tokens are added."""
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *WORDS, *(f"▁{word}" for word in WORDS)]
    core = Tokenizer(WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = Metaspace(prepend_scheme="never")
    core.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Reviews, policy and classifier as folders in the hub's formats."""
    root = tmp_path_factory.mktemp("imdb")
    rng = random.Random(0)
    reviews = [" ".join(rng.choices(WORDS, k=12)) for _ in range(6)] + ["great"]
    (root / "reviews/plain_text").mkdir(parents=True)
    table = pyarrow.Table.from_pylist([{"text": text, "label": i % 2} for i, text in enumerate(reviews)])
    pyarrow.parquet.write_table(table, root / "reviews/plain_text/train-00000-of-00001.parquet")

    tok = tokenizer()
    torch.manual_seed(0)
    policy = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tok),
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    classifier = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=len(tok),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=34,
            pad_token_id=0,
            id2label={0: "NEGATIVE", 1: "POSITIVE"},
            label2id={"NEGATIVE": 0, "POSITIVE": 1},
        )
    )
    for parameter in classifier.classifier.parameters():
        torch.nn.init.normal_(parameter)
    for name, model in (("policy", policy), ("classifier", classifier)):
        model.save_pretrained(root / name)
        tok.save_pretrained(root / name)
    return root


@pytest.fixture
def make(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))

    def source(**changes) -> ImdbSentiment:
        keys = {
            "path": str(folders / "reviews"),
            "policy": str(folders / "policy"),
            "classifier": str(folders / "classifier"),
            "completions": 3,
            "max_new_tokens": 6,
            "batch_size": 4,
            "device": "cpu",
            "cache_dir": str(tmp_path / "cache"),
        }
        return ImdbSentiment(**(keys | changes))

    return source


def log_odds(folders, text: str) -> float:
    """By softmax and one text at a time, where the source works from logits in batches."""
    model = RobertaForSequenceClassification.from_pretrained(folders / "classifier")
    with torch.no_grad():
        p = model(**tokenizer()(text, return_tensors="pt")).logits.double().softmax(-1)[0, 1].item()
    return math.log(p) - math.log1p(-p)


def test_pairs_from_end_to_end(folders, make):
    source = make()
    assert isinstance(source, PairSource)
    pairs, report = load_pairs(source, "train", on_reversed_scores="reject", on_degenerate="keep")
    assert report.formats == {"trl_standard": len(pairs)}
    # 7 reviews with 3 continuations make 21 pairs, less those with a continuation without text
    assert 15 <= len(pairs) <= 21
    reviews = datasets.load_dataset(str(folders / "reviews"), split="train")["text"]
    for pair in pairs:
        assert any(text.startswith(pair.prompt) for text in reviews)
        assert pair.prompt == "great" or 2 <= len(pair.prompt.split()) <= 8
        assert 1 <= len(pair.chosen.split()) <= 6
        assert "</s>" not in pair.chosen + pair.rejected
        assert pair.score_chosen >= pair.score_rejected
    for pair in pairs[::5]:
        assert pair.score_chosen == pytest.approx(log_odds(folders, pair.prompt + pair.chosen), abs=1e-5)
        assert pair.score_rejected == pytest.approx(log_odds(folders, pair.prompt + pair.rejected), abs=1e-5)
        assert source.reward(pair.prompt, pair.chosen) == pytest.approx(pair.score_chosen, abs=1e-5)


def test_cache_answers_without_models_and_knows_its_settings(make, monkeypatch):
    first = [row.value for row in make().rows("train")]
    assert [row.value for row in make(cache_dir=make().cache_dir + "/other").rows("train")] == first
    monkeypatch.setattr("caldpo.data.sources.imdb.load_causal_lm", None)
    again = list(make(device="auto").rows("train"))
    assert [row.value for row in again] == first
    assert again[0].origin.endswith("pairs.jsonl:1")
    different = [
        {"seed": 1},
        {"completions": 2},
        {"max_new_tokens": 5},
        {"temperature": 0.5},
        {"min_prompt_tokens": 1},
        {"label_sharpness": 1.0},
        {"batch_size": 3},
        {"positive_label": "NEGATIVE"},
        {"classifier": "some/other"},
        {"policy": "some/other"},
        {"revision": "v2"},
    ]
    files = {make(**change).cache_file("train") for change in different} | {
        make().cache_file(s) for s in ("train", "x")
    }
    assert len(files) == len(different) + 2


def test_another_training_of_the_policy_is_another_cache(make, folders):
    before = make().cache_file("train")
    config = folders / "policy/config.json"
    config.write_text(config.read_text() + "\n")
    assert make().cache_file("train") != before


def test_an_interrupted_run_leaves_nothing_to_read(make, monkeypatch):
    """The next run makes the pairs again, all of them."""
    source = make()
    with monkeypatch.context() as patch:
        patch.setattr("caldpo.data.sources.imdb.label_pairs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            source.rows("train")
    assert not source.cache_file("train").exists()
    expected = make(cache_dir=f"{source.cache_dir}/other")
    assert [r.value for r in source.rows("train")] == [r.value for r in expected.rows("train")]


def test_sampling_leaves_the_global_generator_alone(make):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    make().rows("train[:2]")
    assert torch.rand(1) == expected


def test_negative_class_as_reward_turns_the_labels_round(make):
    """With two classes the log-odds of one are minus those of the other."""
    up = [row.value for row in make().rows("train[:3]")]
    down = [row.value for row in make(positive_label="negative").rows("train[:3]")]
    assert [(p["chosen"], p["rejected"]) for p in up] == [(p["rejected"], p["chosen"]) for p in down]
    assert [p["score_chosen"] for p in up] == pytest.approx([-p["score_rejected"] for p in down])


def test_the_space_after_the_prompt_is_the_continuations(monkeypatch):
    """Also for tokenizers that drop the first space of what they decode, as Llama's does."""
    tok = tokenizer()
    tok.backend_tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first")
    tok.backend_tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    was, eos = tok.convert_tokens_to_ids("▁was"), tok.eos_token_id
    assert tok.decode([was]) == "was"
    prompts = []

    def respond(model, tokenizer, ids, **settings):
        prompts.extend(ids)
        return [[was, was, eos]] * len(ids)

    monkeypatch.setattr(imdb, "end_tokens", lambda *_: ())
    monkeypatch.setattr(imdb, "sample_responses", respond)
    found = imdb.sample_continuations(
        None, tok, ["this movie", "bad"], max_new_tokens=3, temperature=1.0, seed=0, batch_size=1
    )
    assert found == [" was was", " was was"]
    assert prompts == [tok.convert_tokens_to_ids(["▁this", "▁movie"]), tok.convert_tokens_to_ids(["▁bad"])]


def test_every_batch_and_seed_samples_afresh(monkeypatch):
    """Else a prompt in two batches would get one continuation twice. Equal seeds give equal samples."""
    seeds = []
    monkeypatch.setattr(imdb, "end_tokens", lambda *_: ())
    monkeypatch.setattr(imdb, "sample_responses", lambda *_, seed, **__: seeds.append(seed) or [[5]])
    for seed in (0, 0, 1):
        imdb.sample_continuations(
            None, tokenizer(), ["bad"] * 3, max_new_tokens=1, temperature=1.0, seed=seed, batch_size=1
        )
    assert seeds[:3] == seeds[3:6]
    assert len(set(seeds)) == 6


def test_every_two_continuations_with_text_make_a_pair():
    scored = [("a", 0.0), (" \n", 9.0), ("b", 2.0), ("c", -1.0)]
    pairs = list(label_pairs("P", scored, None, random.Random(0)))
    rewards = dict(scored)
    assert {frozenset((p["chosen"], p["rejected"])) for p in pairs} == set(
        map(frozenset, itertools.combinations("abc", 2))
    )
    for p in pairs:
        assert (p["score_chosen"], p["score_rejected"]) == (rewards[p["chosen"]], rewards[p["rejected"]])
        assert p["score_chosen"] > p["score_rejected"]


def test_drawn_labels_follow_bradley_terry():
    """sigmoid(0.5 * 2) = 0.731 of the draws, +- 4 sqrt(p (1 - p) / 4000) = 0.028."""
    rng = random.Random(0)
    draws = [next(label_pairs("P", [("a", 1.0), ("b", -1.0)], 0.5, rng)) for _ in range(4000)]
    assert abs(sum(p["chosen"] == "a" for p in draws) / 4000 - 0.731) < 0.028
    assert all(p["score_chosen"] == {"a": 1.0, "b": -1.0}[p["chosen"]] for p in draws)


@pytest.mark.parametrize(
    ("change", "key", "fact"),
    [
        ({"completions": 1}, "completions", ">= 2"),
        ({"min_prompt_tokens": 9}, "data.source.min_prompt_tokens", "max_prompt_tokens=8"),
        ({"temperature": 0.0}, "temperature", "> 0"),
    ],
)
def test_settings_are_checked_at_once(make, change, key, fact):
    [value] = change.values()
    with refused(fact, key=key, value=value):
        make(**change)


def test_missing_parts_are_named(make, folders, tmp_path):
    with refused("NEGATIVE, POSITIVE", key="data.source.positive_label", value="HAPPY"):
        make(positive_label="HAPPY").reward("a", "b")
    with refused("cannot load", key="data.source.classifier", value=tmp_path, remedy="save_pretrained"):
        make(classifier=str(tmp_path)).reward("a", "b")
    with refused(key="data.source.policy", value=tmp_path / "none"):
        make(policy=str(tmp_path / "none")).rows("train")
    # before any sampling, not after hours of it
    with refused("NEGATIVE, POSITIVE", key="data.source.positive_label", value="HAPPY"):
        make(positive_label="HAPPY", policy=str(tmp_path / "none")).rows("train")
    (tmp_path / "other").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"review": ["x"]}), tmp_path / "other/train.parquet")
    with refused("`text`", "review", key="data.source.path", value=tmp_path / "other"):
        make(path=str(tmp_path / "other")).rows("train")
