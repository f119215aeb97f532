"""The parts of an export that need no run: names, places, what a card says, generation settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import GenerationConfig

from caldpo.checkpointing.manifest import wanted_checkpoint
from caldpo.config.run_lifecycle import FINISHED
from caldpo.errors import CaldpoError
from caldpo.exporting.export_policy import complete_generation, in_dtype
from caldpo.exporting.export_settings import check_export, default_dir
from caldpo.exporting.model_card import (
    Exported,
    card,
    citations,
    published_base,
    published_data,
    tracking,
    without_paths,
)
from caldpo.report.run_files import Run
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model, tiny_tokenizer

KEYS = {"checkpoint": "final", "to": None, "max_shard_size": "5GB", "push_to": None}


@pytest.mark.parametrize(
    ("text", "step"), [*((name, name) for name in ("final", "last", "best")), (40, 40), ("40", 40), ("step-7", 7)]
)
def test_checkpoints_have_several_spellings(text: int | str, step: int | str) -> None:
    assert wanted_checkpoint(text) == step


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("checkpoint", value) for value in ("newest", "step-", "-1", "step-1.5")),
        *(("max_shard_size", value) for value in ("5", "0GB", "big", "-1GB")),
        *(("push_to", value) for value in ("name", "a/b/c", "org/na--me", "org/-", "org/name.git", "org/n me", "/x")),
    ],
)
def test_a_bad_value_is_told_before_anything_loads(
    key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "x" * 10)
    for file in ("config.yaml", "metrics.csv", "summary.json"):
        (tmp_path / file).write_text("{}")
    check_export(OmegaConf.create(KEYS | {"run": str(tmp_path), "push_to": "org/na.me-1_x"}))
    with pytest.raises(CaldpoError) as wrong:
        check_export(OmegaConf.create(KEYS | {"run": str(tmp_path), key: value}))
    assert wrong.value.key == key


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("data.train=/home/ann/x/train.jsonl", "data.train=train.jsonl"),
        ("`~/runs/a b`", "`a b`"),
        ("file:///home/ann/x.csv", "x.csv"),
        ("see https://arxiv.org/abs/2305.18290 and a/b/c", "see https://arxiv.org/abs/2305.18290 and a/b/c"),
        ("log pi(y|x)/T, 3 / 4", "log pi(y|x)/T, 3 / 4"),
        ("/data/my runs/r1 done", "r1 done"),
    ],
)
def test_places_are_cut_and_addresses_stay(text: str, left: str) -> None:
    assert without_paths(text, Path("/data/my runs/r1")) == left


def test_papers_are_those_at_the_head_of_a_loss() -> None:
    assert citations("caldpo.losses.cal_dpo.CalDPO") == ["2412.14516"]
    assert citations("caldpo.losses.dpo.DPO")[0] == "2305.18290"
    assert citations("mine.losses.x.X") == []
    assert citations("caldpo.losses.nowhere.X") == []


def test_a_base_is_named_where_the_hub_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    noted = {"policy": f"org/base@{'a' * 40}"}
    assert published_base({"model": {"path": "org/base"}}, noted) == "org/base"
    assert published_base({"model": {"path": "models/gone"}}, {"policy": "models/gone"}) is None
    assert published_base({"model.path": "/srv/base"}, {}) is None
    assert published_base({"model": {"hidden_size": 4}}, {}) is None
    (tmp_path / "org/base").mkdir(parents=True)
    assert published_base({"model": {"path": "org/base"}}, {}) is None
    assert published_data({"data": {"source": {"path": "org/pairs"}, "train": "x/y.jsonl"}}) == ["org/pairs"]


def test_a_card_tells_what_went_wrong_up_to_its_step() -> None:
    alarm = {"alarm": "displacement", "step": 8, "text": "they fall"}
    summary = {"steps": 9, "alarms": [alarm], "skipped_steps": 3}
    curves = {"val/log_ratios/chosen": {0: 0.0, 5: -1.5, 9: -7.25}}
    run = Run(Path("/data/ann/r1"), "r1", FINISHED, None, "cal_dpo", 4, {}, {}, curves=curves, summary=summary)
    early, end = (card(run, Exported(step, step == 9, adapter=False), picture=False) for step in (6, 9))
    assert "Alarm" not in early
    names(early, "checkpoint", "9 steps", "| chosen log-ratio | -1.50 | nats | 5 |")
    names(end, "Alarm", "step 8", "they fall", "| chosen log-ratio | -7.25 | nats | 9 |", "3 optimiser steps")
    broken = replace(run, status="interrupted")
    names(card(broken, Exported(5, False, adapter=False), picture=False), "incomplete", "interrupted")


def test_foreign_text_in_a_card_is_shown_as_it_is() -> None:
    """Also where a template puts it between words; paths with characters that Markdown escapes are cut, too."""
    nasty = "<img src=x> [a](http://x) `b`"
    folder = Path("/data/_ann_/r*1")
    summary = {
        "policy": nasty,
        "reference": f"{folder}/policy",
        "formula": "f`(x)",
        "data": {"source": nasty},
        "tracker_url": "https://x/> <img>",
        "overrides": [f"name={nasty}"],
        "versions": {"torch": nasty},
    }
    run = Run(folder, "r1", FINISHED, None, nasty, 0, {}, {}, summary=summary)
    text = card(run, Exported(1, True, adapter=False), picture=False)
    body, end = text.split("---", 2)[2].split("## Train it again")
    for part in (body, end.split("```")[2]):
        assert "<img" not in part
        assert "[a](" not in part
    assert "_ann" not in text
    names(body, r"Reference: r\*1/policy")


def test_a_run_at_wandb_is_told_without_its_place() -> None:
    line = tracking({"upload": "wandb sync /home/ann/outputs/r/wandb/offline-run-1-x"})
    names(line, "wandb sync wandb/offline-run-1-x")
    assert "ann" not in line
    assert tracking({"upload": None}) is None


def test_generation_ends_where_trained_responses_end() -> None:
    settings = GenerationConfig(eos_token_id=7, temperature=0.5, max_new_tokens=9)
    settings, _ = complete_generation(settings, tiny_tokenizer())
    assert settings.eos_token_id == [2, 7]
    assert (settings.pad_token_id, settings.bos_token_id, settings.max_new_tokens) == (0, 1, 9)
    assert settings.do_sample, "a temperature without sampling cannot be written"
    bare, _ = complete_generation(GenerationConfig(eos_token_id=2, pad_token_id=5), tiny_tokenizer())
    assert (bare.eos_token_id, bare.pad_token_id, bare.do_sample) == (2, 5, GenerationConfig().do_sample)


def test_a_weight_too_large_for_float16_is_named() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[0] = 1e5
    with refused("model.norm.weight", "finite", key="dtype", value="float16", remedy="dtype=bfloat16"):
        in_dtype(model, "float16")
    assert in_dtype(tiny_model(), "bfloat16").dtype == torch.bfloat16


def test_exports_are_named_after_run_and_step(tmp_path: Path) -> None:
    run = tmp_path / "sweep" / "loss=dpo"
    run.mkdir(parents=True)
    assert default_dir(run, None, merged=False) == Path("outputs/exports/loss=dpo")
    (tmp_path / "sweep" / "multirun.yaml").touch()
    assert default_dir(run, 40, merged=True) == Path("outputs/exports/sweep-loss=dpo-step-40-merged")
