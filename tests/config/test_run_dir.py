"""Folder names of runs: readable, safe, short, and different for different runs."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from caldpo.config.hydra_session import register_with_hydra
from caldpo.config.run_dir import LONGEST, claim_folder, naming_overrides, run_name
from caldpo.config.run_lock import run_lock
from tests.helpers.messages import refused

SUBDIR = "${run_name:${hydra.overrides.task},${hydra.job.config.override_dirname.exclude_keys}}"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["loss=dpo", "seed=0"], "loss=dpo,seed=0"),
        (["loss.beta=0.05", "+experiment=tabular"], "loss.beta=0.05,experiment=tabular"),
        (["data.train=../x/train.jsonl.gz"], "data.train=train.jsonl.gz"),
        (["data.train='../my data/a,b=c.jsonl'"], "data.train=a,b=c.jsonl"),
        (["model.tokenizer=../.."], "model.tokenizer="),
        (["model.tokenizer=/"], "model.tokenizer=root"),
        (["optim.betas=[0.9,0.99]"], "optim.betas=0.9+0.99"),
        (["a={x:1,y:b/c}"], "a=x=1+y=c"),
        (["export=False", "x=null"], "export=false,x=null"),
        (["~callbacks.oracle"], "no_callbacks.oracle"),
        (["hydra.run.dir=x", "hydra/launcher=joblib", "seed=1"], "seed=1"),
        (["name='a b;c|d'"], "name=a-b-c-d"),
        (["logger.api_key=abc", "seed=1"], "logger.api_key=hidden,seed=1"),
        (["resume=auto", "seed=1"], "seed=1"),  # begun and gone on with, it has one folder
        ([], "run"),
    ],
)
def test_names(overrides: list[str], name: str) -> None:
    assert run_name(overrides) == name


def test_excluded_keys_are_left_out() -> None:
    assert run_name(["loss=dpo", "data=local", "seed=1"], ["data"]) == "loss=dpo,seed=1"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=6))
def test_any_text_makes_a_safe_name(texts: list[str]) -> None:
    name = run_name([f"key{i}={text}" for i, text in enumerate(texts)])
    assert re.fullmatch(r"[A-Za-z0-9=._,+-]{1,120}", name)
    assert ".." not in name
    assert not name.startswith((".", "-"))


def test_secret_environment_values_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcdefghijkl")
    assert "abcdefghijkl" not in run_name(["note=abcdefghijkl2"])


def test_long_names_are_cut_and_stay_different() -> None:
    long = [f"some.very.long.key{i}=value{i}" for i in range(20)]
    first, second = run_name([*long, "seed=0"]), run_name([*long, "seed=1"])
    assert len(first) <= LONGEST
    assert len(second) <= LONGEST
    assert first != second


def sweep(excluded: tuple[str, ...] = (), subdir: str = SUBDIR) -> DictConfig:
    return OmegaConf.create(
        {
            "hydra": {
                "sweep": {"subdir": subdir, "dir": "out"},
                "job": {"num": 3, "config": {"override_dirname": {"exclude_keys": list(excluded)}}},
                "overrides": {"task": ["loss=dpo", "seed=1"]},
            }
        }
    )


def test_a_long_name_is_the_same_when_a_run_is_gone_on_with() -> None:
    long = [f"data.train={'x' * 150}.jsonl", "seed=1"]
    assert run_name([*long, "resume=auto"]) == run_name(long)
    assert run_name([*long, "other=1"]) != run_name(long)


def test_names_that_differ_need_nothing() -> None:
    assert naming_overrides([["seed=0"], ["seed=1"]], sweep(), all_known=True) == []


def test_runs_that_would_share_a_folder_are_numbered() -> None:
    jobs = [["data.train=a/x.jsonl"], ["data.train=b/x.jsonl"]]
    (added,) = naming_overrides(jobs, sweep(), all_known=True)
    assert added == f"hydra.sweep.subdir='{SUBDIR}-${{hydra.job.num}}'"
    (added,) = naming_overrides([["a=X"], ["a=x"]], sweep(), all_known=True)
    assert added.endswith("${hydra.job.num}'")


def test_sweepers_that_draw_values_have_numbered_runs() -> None:
    (added,) = naming_overrides([["seed=0"]], sweep(), all_known=False)
    assert added.endswith("-${hydra.job.num}'")


def test_what_all_runs_share_leaves_names_that_grow_too_long() -> None:
    shared = [f"data.some_setting_{i}=a_rather_long_value" for i in range(5)]
    jobs = [[f"loss={loss}", *shared, "~data.x"] for loss in ("dpo", "ipo")]
    (added,) = naming_overrides(jobs, sweep(), all_known=True)
    key, _, value = added.partition("=")
    assert key == "hydra.job.config.override_dirname.exclude_keys"
    excluded = value.strip("[]").split(",")
    assert [run_name(job, excluded) for job in jobs] == ["loss=dpo", "loss=ipo"]
    # the user's own choice, and one run alone, stay as they are
    assert naming_overrides(jobs, sweep(excluded=("data.some_setting_0",)), all_known=True) == []
    assert naming_overrides(jobs[:1], sweep(), all_known=True) == []


def test_a_subdir_of_the_users_own_is_left_alone() -> None:
    assert naming_overrides([["a=1"], ["a=1"]], sweep(subdir="${hydra.job.num}"), all_known=True) == []


def test_the_resolver_names_a_run() -> None:
    register_with_hydra()
    assert sweep().hydra.sweep.subdir == "loss=dpo,seed=1"
    assert sweep(excluded=("loss",)).hydra.sweep.subdir == "seed=1"


class TestClaiming:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        HydraConfig.instance().cfg = None
        OmegaConf.register_new_resolver("now", lambda pattern: "2026", replace=True)

    def cfg(self, written: str) -> DictConfig:
        return OmegaConf.create({"hydra": {"run": {"dir": written}}})

    def test_two_in_one_second_have_two_folders(self, tmp_path: Path) -> None:
        cfg = self.cfg("outputs/x_${now:%Y}")
        assert [claim_folder(cfg, "run") for _ in range(3)] == [
            ["hydra.run.dir=outputs/x_2026"],
            ["hydra.run.dir=outputs/x_2026-2"],
            ["hydra.run.dir=outputs/x_2026-3"],
        ]
        assert len(list((tmp_path / "outputs").iterdir())) == 3

    def test_a_folder_chosen_by_name_is_used_again(self, tmp_path: Path) -> None:
        assert claim_folder(self.cfg("outputs/mine"), "run") == []
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_another_process_writes_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        records, reads = self.cfg("mine"), self.cfg("mine")
        records.hydra.output_subdir, reads.hydra.output_subdir = ".hydra", None
        (tmp_path / "mine").mkdir()
        with run_lock(tmp_path / "mine"):
            with refused(f"kill {os.getpid()}", key="hydra.run.dir", value="mine"):
                claim_folder(records, "run")
            assert claim_folder(reads, "run") == [], "a report of it can be had"
        assert claim_folder(records, "run") == []

    def test_a_file_in_the_way_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "outputs").touch()
        with refused(os.strerror(errno.ENOTDIR), key="hydra.run.dir", value="outputs/x_2026"):
            claim_folder(self.cfg("outputs/x_${now:%Y}"), "run")

    def test_a_named_folder_that_cannot_be_made_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        for taken in ("file", "file/run"):
            with refused(tmp_path / "file", key="hydra.run.dir", value=tmp_path / taken):
                claim_folder(self.cfg(str(tmp_path / taken)), "run")
        assert claim_folder(self.cfg(str(tmp_path / "new/run")), "run") == []
        monkeypatch.setattr("os.access", lambda *_: False)  # as on a disk that is only read
        nearest = f"{tmp_path} "  # not only the folder in it that was asked for
        with refused(nearest, key="hydra.run.dir", value=tmp_path / "new/run"):
            claim_folder(self.cfg(str(tmp_path / "new/run")), "run")
        assert claim_folder(self.cfg(str(tmp_path)), "run") == [], "a report of what is there can be had"

    def test_a_named_folder_in_one_that_may_not_be_entered(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As for everybody but root."""
        locked = tmp_path / "locked"
        locked.mkdir()
        stat = Path.stat

        def denied(path: Path, **keys: Any) -> os.stat_result:
            if locked in path.parents:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return stat(path, **keys)

        monkeypatch.setattr(Path, "stat", denied)
        monkeypatch.setattr("os.access", lambda path, mode: Path(path) != locked)
        with refused(
            f"{locked} cannot be written to", key="hydra.run.dir", value=locked / "new/run", remedy="write to"
        ):
            claim_folder(self.cfg(str(locked / "new/run")), "run")

    def test_processes_from_outside_need_a_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        with refused("torchrun", key="hydra.run.dir", remedy="hydra.run.dir=outputs/NAME"):
            claim_folder(self.cfg("outputs/x_${now:%Y}"), "run")
        assert claim_folder(self.cfg("outputs/mine"), "run") == []
