"""``run(cfg)`` and ``train(cfg)`` of a configuration that Hydra's own ``compose`` made, without caldpo's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import caldpo
from caldpo.config.plain_compose import with_hydra_section
from caldpo.training_command import run
from tests.api.test_train_call import SMALL
from tests.helpers.command import train as command
from tests.helpers.messages import refused


def composed(*overrides: str, **keys: Any) -> DictConfig:
    with initialize_config_dir(str(caldpo.conf_dir()), version_base="1.3"):
        return compose("train", list(overrides), **keys)


def test_it_is_the_run_of_the_command(folder: Path) -> None:
    value = run(composed(*SMALL, "loss=dpo", "optim.lr=0.02", "name=mine"))
    command(*SMALL, "loss=dpo", "optim.lr=0.02", "hydra.run.dir=there")
    (here,) = Path("outputs").glob("mine_*")
    found, expected = (json.loads((place / "summary.json").read_text()) for place in (here, Path("there")))
    assert value == expected["metrics"]["val/loss"]
    for summary in (found, expected):
        summary["metrics"].pop("tokens_per_second")
    assert found["metrics"] == expected["metrics"]
    assert (found["status"], found["loss_name"]) == ("finished", "dpo")
    of_both = [yaml.safe_load((place / "config.yaml").read_text()) for place in (here, Path("there"))]
    assert {**of_both[0], "name": "train"} == of_both[1]
    assert not HydraConfig.initialized()
    assert not GlobalHydra.instance().is_initialized()


def test_with_hydras_section_its_folder_and_choices_are_taken(folder: Path) -> None:
    cfg = composed(*SMALL, "loss=cpo", "hydra.run.dir=here", "trainer.max_steps=1", return_hydra_config=True)
    made = caldpo.train(cfg)
    assert made.folder == folder / "here"
    assert made.summary["loss_name"] == "cpo"
    assert made.summary["overrides"][-1] == "trainer.max_steps=1"


def test_a_folder_may_be_named(folder: Path) -> None:
    cfg = composed(*SMALL, "trainer.max_steps=1", "export=false")
    assert caldpo.train(cfg, folder="here").folder == folder / "here"
    with refused(key="hydra.run.dir", value=folder / "here", remedy="resume=auto"):
        caldpo.train(cfg, folder="here")
    cfg.resume = "auto"
    assert caldpo.train(cfg, folder="here").folder == folder / "here", "it has finished: nothing is trained"


def test_mistakes_are_errors_to_catch(folder: Path) -> None:
    cfg = composed(*SMALL)
    cfg.optim.lr = -1
    for call in (run, caldpo.train):
        with refused(key="optim.lr", value=-1):
            call(cfg)
        with refused("dict", key="cfg", remedy="compose("):
            call({"loss": "dpo"})
    assert not Path("outputs").exists()


def test_the_chosen_options_are_told_by_their_targets() -> None:
    cfg = with_hydra_section(composed("loss=f_dpo", "optim=rmsprop", "adapter=lora", "data=arithmetic"), "train")
    choices = cfg.hydra.runtime.choices
    assert (choices.loss, choices.optim, choices.adapter, choices.model) == ("f_dpo", "rmsprop", "lora", "tiny")
    assert (choices.logger, choices.trainer) == ("wandb", None), "several options of a trainer have one target"
    cfg = composed("loss=dpo")
    cfg.loss = {"_target_": "own.package.Hinge"}
    assert with_hydra_section(cfg, "train").hydra.runtime.choices.loss == "Hinge"


def test_settings_per_loss_that_hydra_left_out_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that composes before it imports caldpo has no options of ``per_loss``, and Hydra skips them."""
    cfg = composed("loss=ipo")
    with_hydra_section(cfg, "train")
    assert capsys.readouterr().err == ""
    own = yaml.safe_load((caldpo.conf_dir() / "loss/ipo.yaml").read_text())
    cfg.loss.update({key: value for key, value in own.items() if key != "_target_"})
    with_hydra_section(cfg, "train")
    wanted = yaml.safe_load((caldpo.conf_dir() / "per_loss.yaml").read_text())["tiny"]["ipo"]
    printed = capsys.readouterr().err
    assert all(f"{key}={value}" in printed for key, value in wanted.items())
