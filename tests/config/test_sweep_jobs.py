"""The launchers of conf/hydra/launcher: what they build on, and which runs they go with."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.config.extras import EXTRAS
from caldpo.config.sweep_jobs import find_process_problems

PLUGINS = {"workers": "joblib", "jobs": "submitit_local", "slurm": "submitit_slurm"}


def composed(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize("option", sorted(path.stem for path in (conf_dir() / "hydra" / "launcher").glob("*.yaml")))
def test_each_is_a_plugin_with_values_of_our_own(option: str) -> None:
    plugin = PLUGINS[option]
    pytest.importorskip(f"hydra_plugins.hydra_{plugin.partition('_')[0]}_launcher", reason="needs its extra")
    assert ("hydra/launcher", plugin) in EXTRAS, "where it is not installed, the extra is named"
    ours, theirs = (composed(f"hydra/launcher={name}").hydra.launcher for name in (option, plugin))
    assert set(ours) == set(theirs)
    assert ours._target_ == theirs._target_
    of_demo = composed(f"hydra/launcher={option}", "experiment=demo", "name=train").hydra.launcher
    assert of_demo._target_ == ours._target_, "a recipe lets it be chosen"


def test_jobs_of_a_cluster_ask_for_what_the_run_needs() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra 'slurm'")
    cfg = composed("hydra/launcher=slurm", "trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2", "name=mine")
    asked = {key: cfg.hydra.launcher[key] for key in ("name", "nodes", "tasks_per_node", "gpus_per_node")}
    assert asked == {"name": "mine", "nodes": 2, "tasks_per_node": 4, "gpus_per_node": 4}
    assert list(find_process_problems(cfg)) == []


@pytest.mark.parametrize(
    ("launcher", "devices", "key"),
    [
        ({"_target_": "x.BasicLauncher"}, 2, "trainer.devices"),
        ({"_target_": "x.LocalLauncher", "tasks_per_node": 2}, 2, "trainer.devices"),
        ({"_target_": "x.JoblibLauncher"}, 1, None),
        ({"_target_": "x.SlurmLauncher", "tasks_per_node": 1}, 2, "hydra.launcher.tasks_per_node"),
        ({"_target_": "x.SlurmLauncher", "tasks_per_node": 2}, 2, None),
        ({"_target_": "x.SlurmLauncher", "tasks_per_node": 1}, "auto", None),
        ({"_target_": "x.OtherLauncher"}, 2, None),
    ],
)
def test_processes_of_a_run(
    launcher: dict[str, object], devices: object, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    cfg = OmegaConf.create({"hydra": {"launcher": launcher}, "trainer": {"devices": devices}})
    assert [problem.key for problem in find_process_problems(cfg)] == ([] if key is None else [key])
