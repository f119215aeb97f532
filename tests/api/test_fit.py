"""``caldpo.fit``: the run of the command, from models and pairs in memory; what it refuses."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import caldpo
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.dpo import DPO
from caldpo.types import LossOutput, PairLogps
from tests.helpers.command import RANDOM_MODEL
from tests.helpers.command import train as command
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model

SETTINGS = {
    "data.micro_batch_size": 6,
    "trainer": "cpu",
    "trainer.val_check_interval": None,
    "callbacks.samples.prompts": 0,
    "callbacks.checkpoint.every": None,
}


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "tokens_per_second"}


def test_it_is_the_run_of_the_command(folder: Path) -> None:
    sizes = {key: value for key, _, value in (text.partition("=") for text in RANDOM_MODEL) if key.count(".")}
    settings = {**SETTINGS, "model.hidden_size": 16, "optim.lr": 0.02}
    run = caldpo.fit("random", "pairs.jsonl", "dpo", tokenizer="tokenizer", max_steps=2, seed=3, settings=settings)
    of_command = ["null" if value is None else value for value in SETTINGS.values()]
    command(
        *RANDOM_MODEL[:3],
        *("data=local", "data.train=pairs.jsonl", "loss=dpo", "seed=3", "optim.lr=0.02", "trainer.max_steps=2"),
        *(f"{key}={value}" for key, value in zip(SETTINGS, of_command, strict=True)),
        *("logger=csv", "trainer.progress_bar=false", "hydra.run.dir=there"),
    )
    assert sizes["data.micro_batch_size"] == "6"
    there = json.loads(Path("there/summary.json").read_text())
    assert untimed(run.final) == untimed(there["metrics"])
    configs = [yaml.safe_load((place / "config.yaml").read_text()) for place in (run.folder, Path("there"))]
    assert {**configs[0], "console": "full"} == configs[1]
    # a row per step: measured before each of the two updates, and the held-out pairs at both ends
    assert run.metrics.index.tolist() == [0, 1, 2]
    assert run.metrics["loss"].notna().tolist() == [True, True, False]
    assert run.metrics["val/loss"].notna().tolist() == [True, False, True]
    assert run.metrics["val/loss"].iloc[-1] == run.final["val/loss"]
    assert run.metrics["loss"].iloc[0] == pytest.approx(np.log(2), rel=1e-6)


def test_in_a_notebook_too_all_but_two_lines_goes_into_output_txt(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    displayed: list[object] = []
    kernel = type("ZMQInteractiveShell", (), {})()  # by which rich knows a kernel
    monkeypatch.setattr(builtins, "get_ipython", lambda: kernel, raising=False)
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: displayed.append(text))
    settings = {**SETTINGS, "model.hidden_size": 16, "adapter": "lora", "reference": "precomputed"}
    run = caldpo.fit("random", "pairs.jsonl", tokenizer="tokenizer", lr=1e-4, max_steps=2, settings=settings)
    assert displayed == []
    assert len(capsys.readouterr().out.splitlines()) == 2
    names((run.folder / "output.txt").read_text(), "Held-out pairs after 2 steps", "reference log-probs:", "adapter:")


def test_a_model_and_pairs_in_memory_are_trained_as_files_are(folder: Path) -> None:
    """The same weights and rows by folder and from memory, as dicts, frame and data set: the same run, to the bit."""
    from transformers import AutoTokenizer

    model, tokenizer = tiny_model(), AutoTokenizer.from_pretrained("tokenizer")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    table = pd.DataFrame(rows())
    given: list[tuple[Any, Any, Any]] = [
        ("model", "pairs.jsonl", None),
        (model, rows(), tokenizer),
        (model, table, "tokenizer"),
        (model, datasets.Dataset.from_list(rows()), tokenizer),
    ]
    runs = [
        caldpo.fit(who, what, "cal_dpo", tokenizer=how, lr=0.02, max_steps=2, settings=SETTINGS)
        for who, what, how in given
    ]
    assert [untimed(run.final) for run in runs[1:]] == [untimed(runs[0].final)] * 3
    assert len({run.folder for run in runs}) == 4
    assert len(list(Path("outputs/cache/models").glob("*/config.json"))) == 1, "written once"
    assert {path.suffix for path in Path("outputs/cache/pairs").iterdir()} == {".jsonl", ".parquet"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "a copy is trained"
    policy, reference = runs[1].policy.state_dict(), runs[1].reference.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in reference.items())
    assert not all(torch.equal(value, before[name]) for name, value in policy.items())
    assert runs[1].tokenizer.get_vocab() == tokenizer.get_vocab()


def test_held_out_pairs_may_be_given(folder: Path) -> None:
    run = caldpo.fit(
        "random",
        rows()[:16],
        test_pairs=pd.DataFrame(rows()[16:]),
        tokenizer="tokenizer",
        max_steps=1,
        settings={**SETTINGS, "model.hidden_size": 16, "export": False},
        folder="here",
    )
    assert run.folder == folder / "here"
    found = run.summary["data"]
    assert (found["train"]["pairs"], found["test"]["pairs"]) == (16, 8)
    with refused(key="checkpoint", remedy="export=true"):
        _ = run.policy
    with refused(key="hydra.run.dir", value=folder / "here"):  # a run is never written over
        caldpo.fit("random", rows()[:16], tokenizer="tokenizer", settings={"model.hidden_size": 16}, folder="here")


class OwnHinge(PreferenceLoss):
    """``max(0, margin - (a - b))``, twice as steep where asked."""

    def __init__(self, margin: float, steep: bool = False) -> None:
        super().__init__()
        self.margin, self.factor = margin, 2.0 if steep else 1.0

    @property
    def formula(self) -> str:
        return f"{self.factor:g} max(0, {self.margin:g} - (a - b))"

    def forward(self, logps: PairLogps) -> LossOutput:
        gap = logps.chosen_log_ratio - logps.rejected_log_ratio
        loss = self.factor * (self.margin - gap).clamp(min=0)
        return LossOutput(loss, {"hinge": loss})


def test_a_loss_of_ones_own_is_an_option(folder: Path) -> None:
    keys = {**SETTINGS, "model.hidden_size": 16, "export": False}
    run = caldpo.fit(
        "random", "pairs.jsonl", OwnHinge, tokenizer="tokenizer", max_steps=1, settings={**keys, "loss.margin": 3}
    )
    assert run.metrics["loss"].iloc[0] == pytest.approx(3.0), "policy and reference are equal at step 0"
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert config["loss"] == {"_target_": f"{__name__}.OwnHinge", "margin": 3, "steep": False}
    assert run.summary["loss_name"] == "own_hinge"
    with refused(key="loss.margin"):  # has no default, and is not given
        caldpo.fit("random", "pairs.jsonl", OwnHinge, tokenizer="tokenizer", settings=keys)


class OwnMargin(PreferenceLoss):
    def forward(self, logps: PairLogps) -> LossOutput:
        return LossOutput(-logps.chosen_log_ratio, {})


def test_a_loss_of_ones_own_needs_no_formula(folder: Path) -> None:
    keys = {**SETTINGS, "model.hidden_size": 16, "export": False}
    run = caldpo.fit("random", "pairs.jsonl", OwnMargin, tokenizer="tokenizer", max_steps=1, settings=keys)
    assert run.summary["formula"] == "OwnMargin"


class Holder:
    @staticmethod
    def local() -> type[PreferenceLoss]:
        class Local(DPO):
            pass

        return Local


@pytest.mark.parametrize(
    ("loss", "facts"),
    [
        (DPO(), {"key": "loss", "remedy": "settings="}),
        (dict, {"key": "loss", "remedy": "settings="}),
        (Holder.local(), {"key": "loss", "remedy": "module"}),
        ("dqo", {"key": "loss", "value": "dqo"}),
    ],
)
def test_a_loss_that_cannot_be_built_is_refused(loss: Any, facts: dict[str, Any], folder: Path) -> None:
    with refused(**facts):
        caldpo.fit("random", "pairs.jsonl", loss, tokenizer="tokenizer")
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("pairs", "key", "facts"),
    [
        ([], "pairs", ("rows",)),
        (pd.DataFrame(), "pairs", ("rows",)),
        ({"train": 1}, "pairs", ("dict", "pairs=d['train']")),
        (7, "pairs", ("int", "pandas.DataFrame")),
        ([{"prompt": "a"}, "b"], "pairs[1]", ("str",)),
        ([{"prompt": "a", "chosen": {1, 2}}], "pairs[0]", ("set",)),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": float("nan")}], "pairs[0]", ("finite",)),
        (pd.DataFrame({"prompt": ["a", 1]}), "pairs", ("table",)),
        (
            pd.DataFrame({"prompt": ["a"]}).set_index("prompt", drop=False),
            "pairs",
            ("prompt", "reset_index(drop=True)"),
        ),
        ("nowhere.jsonl", "data.train", ("nowhere.jsonl",)),
    ],
)
def test_pairs_that_are_none_are_refused(pairs: Any, key: str, facts: tuple[str, ...], folder: Path) -> None:
    with refused(*facts, key=key):
        caldpo.fit("random", pairs, tokenizer="tokenizer", settings={"model.hidden_size": 16})
    kept = [path for path in Path("outputs").rglob("*") if path.is_file() or path.parent.name == "pairs"]
    assert kept == [], "no half state"


def test_a_model_that_is_none_is_refused(folder: Path) -> None:
    with refused("Linear", key="model", remedy="PreTrainedModel"):
        caldpo.fit(torch.nn.Linear(1, 1), rows())  # type: ignore[arg-type]
    with refused(key="tokenizer", remedy="tokenizer="):
        caldpo.fit(tiny_model(), rows())
    with refused(key="model.path", value="./nowhere"):
        caldpo.fit("./nowhere", rows())
    with refused(key="test_pairs", remedy="pairs"):
        caldpo.fit("tiny", test_pairs=rows())
    assert not list(Path("outputs").glob("train_*"))


def test_mistakes_in_settings_are_all_said_at_once(folder: Path) -> None:
    with refused("loss.bta", "optim.lr=-1", "did you mean beta?"):
        caldpo.fit("tiny", lr=-1, settings={"loss.bta": 0.1})
    with refused("loss=dpoo", "trainer.max_stepz:"):
        caldpo.fit("tiny", loss="dpoo", settings={"trainer.max_stepz": 3})
    with refused(key="optim.lr", remedy="number"):
        caldpo.fit("tiny", settings={"optim.lr": torch.ones(1)})
    with refused("list", key="settings", remedy="loss.beta"):
        caldpo.fit("tiny", settings=["loss.beta=1"])  # type: ignore[arg-type]
    with refused(key="config_dir", value="nowhere"):
        caldpo.fit("tiny", config_dir="nowhere")
    assert not Path("outputs").exists()


def test_a_failed_run_says_so_in_its_folder_and_leaves_nothing_behind(folder: Path) -> None:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    bad = [{**row, "chosen": None} for row in rows()]
    with refused("24", key="data.on_invalid"):
        caldpo.fit("random", bad, tokenizer="tokenizer", settings={"model.hidden_size": 16}, folder="here")
    assert json.loads(Path("here/summary.json").read_text())["status"] == "failed"
    assert Path("here/error.txt").is_file()
    assert not HydraConfig.initialized()
    assert not GlobalHydra.instance().is_initialized()


def test_a_folder_that_holds_no_run_is_refused(folder: Path) -> None:
    with refused(key="run", value=folder / "tokenizer"):
        caldpo.Run(Path("tokenizer"))
