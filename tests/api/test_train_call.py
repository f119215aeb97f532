"""``caldpo.compose`` and ``caldpo.train``: what the command does, from Python; what importing them takes."""

from __future__ import annotations

import inspect
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import caldpo
from caldpo.config.conf_dir import conf_dir
from caldpo.errors import CaldpoError
from tests.helpers.command import RANDOM_MODEL
from tests.helpers.command import train as command
from tests.helpers.messages import names, refused

SMALL = (
    *RANDOM_MODEL,
    "trainer.max_steps=2",
    "trainer.progress_bar=false",
    "logger=csv",
    "callbacks.samples.prompts=0",
)


def test_a_run_from_python_is_that_of_the_command(folder: Path) -> None:
    from caldpo import compose, train

    cfg = compose([*SMALL, "loss=dpo", "hydra.run.dir=here", "notes='lower, again'", "tags=[ablation,lr]"])
    cfg.optim.lr = 0.02  # a value may be changed in between
    result = train(cfg)
    command(*SMALL, "loss=dpo", "optim.lr=0.02", "hydra.run.dir=there")
    there = json.loads(Path("there/summary.json").read_text())
    assert result.folder == folder / "here"
    same = {k: v for k, v in there["metrics"].items() if k != "tokens_per_second"}
    assert {k: v for k, v in result.final.items() if k != "tokens_per_second"} == same
    assert result.summary["status"] == "finished"
    assert (result.summary["notes"], result.summary["tags"]) == ("lower, again", ["ablation", "lr"])
    config = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert (config["notes"], config["tags"]) == ("lower, again", ["ablation", "lr"])
    assert (result.folder / "policy/config.json").is_file()
    assert not HydraConfig.initialized(), "nothing is left behind for the next one"
    with pytest.raises(CaldpoError) as taken:  # as for the command, a folder that holds a run is never written over
        train(cfg)
    names(taken, key="hydra.run.dir", value=folder / "here", remedy="resume=auto")


def test_folders_without_a_name_are_apart(folder: Path) -> None:
    cfg = caldpo.compose([*SMALL, "trainer.max_steps=1", "export=false"])
    assert not (folder / "outputs").exists(), "composing makes nothing"
    first, second = caldpo.train(cfg), caldpo.train(cfg)
    assert first.folder != second.folder
    assert first.folder.is_relative_to(folder / "outputs")


def test_mistakes_are_errors_to_catch(folder: Path) -> None:
    with pytest.raises(CaldpoError) as wrong:
        caldpo.compose(["loss=dqo", "lr=3", "trainer.max_stepz=3"])
    names(wrong, "loss=dqo:", "lr:", "did you mean optim.lr?", "trainer.max_stepz:")
    with pytest.raises(CaldpoError) as wrong:
        caldpo.compose(["tags=[a,7]", "notes=[b]", "logger.tags=[c]"])
    names(wrong, "tags", "7", "notes", "logger.tags", "did you mean tags?")
    cfg = caldpo.compose(list(SMALL))
    cfg.optim.lr = -1
    with pytest.raises(CaldpoError) as wrong:
        caldpo.train(cfg)
    assert wrong.value.key == "optim.lr"


@pytest.mark.parametrize("overrides", ["loss=dpo", [Path("loss=dpo")], [("loss", "dpo")]])
def test_what_is_no_list_of_overrides_is_said_once(overrides: object) -> None:
    with refused("overrides", remedy="compose(["):
        caldpo.compose(overrides)  # type: ignore[arg-type]


def test_what_hydra_holds_for_the_calling_program_stays(folder: Path) -> None:
    """A program with a configuration of its own in Hydra's hands calls caldpo, which succeeds or fails."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        own = GlobalHydra.instance().hydra
        cfg = hydra_compose("train", list(SMALL), return_hydra_config=True)
        cfg.hydra.runtime.output_dir = "theirs"
        HydraConfig.instance().set_config(cfg)
        try:
            with pytest.raises(CaldpoError):
                caldpo.train(caldpo.compose([*SMALL, "optim.lr=-1"]))
            small = caldpo.compose([*SMALL, "export=false"])
            small.data.train = "nowhere.jsonl"
            with pytest.raises(CaldpoError):
                caldpo.train(small)
            assert HydraConfig.get().runtime.output_dir == "theirs"
            assert GlobalHydra.instance().hydra is own
        finally:
            HydraConfig.instance().cfg = None
    assert not GlobalHydra.instance().is_initialized()
    assert not Path("outputs").exists()


def test_the_callers_random_state_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop around runs draws what it would draw without them, also where a run fails."""

    def drawn() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(1))]

    def fails(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = [drawn(), drawn(), drawn()]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    cfg = caldpo.compose([*SMALL, "trainer.max_steps=1", "export=false"])
    found = [drawn()]
    caldpo.train(cfg)
    found.append(drawn())
    monkeypatch.setattr("caldpo.training_run.load_checked_policy", fails)
    with pytest.raises(KeyboardInterrupt):
        caldpo.train(cfg)
    found.append(drawn())
    assert found == expected
    assert (os.environ["PL_GLOBAL_SEED"], "PL_SEED_WORKERS" in os.environ) == ("11", False)


def test_the_package_imports_nothing_heavy() -> None:
    light = [name for name in caldpo.__all__ if name not in ("LossOutput", "PairLogps", "PreferenceModule", "collate")]
    heavy = ("torch", "transformers", "datasets", "pandas", "numpy", "rich", "pytorch_lightning", "matplotlib")
    code = f"""
import sys, caldpo
print(sorted({{name.partition('.')[0] for name in sys.modules}} & {{'hydra', 'omegaconf', 'yaml', 'pydantic'}}))
for name in {light}: getattr(caldpo, name)
print(sorted(set({heavy}) & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["[]", "[]"]


def test_every_name_is_there_and_says_what_it_is() -> None:
    assert set(caldpo.__all__) <= set(dir(caldpo))
    for name in caldpo.__all__:
        assert getattr(caldpo, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing"):
        caldpo.nothing  # noqa: B018
    for name in ("train", "evaluate", "compare"):  # commands, and functions
        command = getattr(caldpo, name)
        assert callable(command.main)
        assert inspect.signature(command).parameters.keys() == inspect.signature(command.function()).parameters.keys()
