"""Files and folders that a configuration names are looked for before anything loads, all of them at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from caldpo.config.find_runs import find_runs
from caldpo.config.validation import raise_problems
from caldpo.data.source_paths import find_misplaced
from caldpo.resume.resume_command import with_run_overrides
from tests.helpers.messages import refused


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file of pairs, a model in a run's folder, and a tokenizer."""
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    for name in ("run/policy/config.json", "lora/adapter_config.json", "tok/tokenizer.json", "pairs/train.jsonl"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("{}")
    Path("template.jinja").write_text("{{ messages }}")
    return tmp_path


def check_places(cfg: DictConfig) -> None:
    raise_problems(list(find_misplaced(cfg)))


def config(**keys: object) -> DictConfig:
    """A configuration of which ``__`` in a name goes one level down; pairs come from local files."""
    cfg = OmegaConf.create({"data": {"source": {"_target_": "caldpo.data.sources.local_files.LocalFiles"}}})
    for name, value in keys.items():
        OmegaConf.update(cfg, name.replace("__", "."), value)
    return cfg


MODEL = ("save_pretrained", "model", "hub")  # what to name in its place
GOOD = {
    "data__train": "train.jsonl",
    "data__test": None,
    "data__chat_template": "template.jinja",
    "model__path": "run/policy",
    "reference__path": "lora",
    "model__tokenizer": "tok",
    "data__cache": "outputs/cache/new",
}


def test_what_is_there_is_no_problem() -> None:
    check_places(config(**GOOD))
    check_places(config(**GOOD | {"model__path": "EleutherAI/pythia-2.8b", "model__tokenizer": "gpt2"}))  # of the hub
    check_places(config(data__train="???", data__test="${nope}"))  # somebody else's to report


@pytest.mark.parametrize(
    ("key", "value", "facts", "remedy"),
    [
        ("data__train", "trian.jsonl", ["did you mean train.jsonl"], None),
        ("data__test", "run", ["run", "policy/"], None),
        ("data__test", "template.jinja", [".jinja"], None),
        ("data__chat_template", "nope.jinja", [os.strerror(errno.ENOENT)], None),
        ("data__chat_template", "empty.jinja", [0], None),
        ("data__train", "empty.jsonl", [], None),
        ("model__path", "./nowhere/policy", [], MODEL),
        ("model__path", "/nowhere", [], MODEL),
        ("model__path", "a/b/c", [], MODEL),
        ("model__path", "run", ["config.json", "did you mean run/policy?"], MODEL),
        ("model__path", "train.jsonl", ["file", "folder"], MODEL),
        ("reference__path", "tok", ["config.json", "adapter_config.json"], MODEL),
        ("model__tokenizer", "run/policy", ["tokenizer.json"], "save_pretrained"),
        ("data__source__policy", "./nowhere", [], MODEL),
        ("data__source__path", "./nowhere", [], None),
        ("data__source__path", "train.jsonl", ["file", "folder"], None),
        ("data__cache", "train.jsonl/cache", ["train.jsonl", "folder"], None),
        ("model__path", "x" * 5000 + "/y/z", [], MODEL),
    ],
)
def test_what_is_not_there_is_named(
    key: str, value: str, facts: list[object], remedy: str | tuple[str, ...] | None
) -> None:
    for name in ("empty.jinja", "empty.jsonl"):
        Path(name).touch()
    with refused(*facts, remedy=remedy) as caught:
        check_places(config(**GOOD | {key: value}))
    assert caught.value.remedy
    assert (caught.value.key, caught.value.value) == (key.replace("__", "."), value)


def test_home_is_not_understood_by_models(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    check_places(config(data__train="~/train.jsonl"))
    with refused(key="model.path", value="~/run/policy", remedy=here / "run/policy"):
        check_places(config(model__path="~/run/policy"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_to(here: Path) -> None:
    here.chmod(0o555)
    try:
        with refused(here, key="data.cache", value="outputs/cache"):
            check_places(config(data__cache="outputs/cache"))
    finally:
        here.chmod(0o755)


def test_all_are_told_at_once_and_each_path_once() -> None:
    cfg = config(data__train="a.jsonl", data__test="b.jsonl", model__path="./m", data__chat_template="c")
    OmegaConf.update(cfg, "data.source.policy", "${model.path}", force_add=True)
    assert [p.key for p in find_misplaced(cfg)] == ["data.train", "data.test", "data.chat_template", "model.path"]
    with refused(4, "data.train=a.jsonl:", "data.test=b.jsonl:", "data.chat_template=c:", "model.path=./m:"):
        check_places(cfg)


def test_other_sources_name_splits() -> None:
    """``train`` is a file for local files alone."""
    check_places(config(data__source___target_="caldpo.data.sources.hub_dataset.HubDataset", data__train="train"))


@pytest.mark.parametrize("name", ["nowhere/rows", "rows.jsonl", "pairs"])
def test_the_embedded_data_has_no_files(name: str) -> None:
    """A folder may be called as a split is."""
    embedded = {
        "data__source___target_": "caldpo.data.sources.environment_pairs.EnvironmentPairs",
        "data__test": "test",
    }
    Path("train").mkdir()
    check_places(config(data__train="train", **embedded))
    with refused("train, validation, test", key="data.train", value=name, remedy="data=local"):
        check_places(config(data__train=name, **embedded))


COMMAND = (
    "import sys; from caldpo.train import main\n"
    "try: main(sys.argv[1:])\n"
    "finally: print('torch' in sys.modules, 'transformers' in sys.modules)"
)


def _child_seconds() -> float:
    return sum(os.times()[2:4])


@pytest.mark.parametrize("sweep", [False, True])
def test_the_command_answers_without_torch(sweep: bool) -> None:
    """With what is wrong otherwise, and in a sweep once for all runs."""
    keys = ["data=local", "data.train=trian.jsonl", "model.path=./m", "model=zephyr", "optimized_metric=val/lost"]
    more = ["-m", "seed=0,1,2", "loss.beta=0.1,-1"] if sweep else ["loss.beta=-1"]
    before = _child_seconds()
    found = subprocess.run([sys.executable, "-c", COMMAND, *keys, *more], capture_output=True, text=True, check=False)
    seconds = _child_seconds() - before
    assert found.returncode == 2
    assert found.stdout.split() == ["False", "False"]
    assert found.stderr.startswith("error: 4 ")
    for said in ("loss.beta=-1:", "did you mean train.jsonl", "model.path=./m", "did you mean val/loss"):
        assert found.stderr.count(said) == 1, found.stderr
    assert seconds < 4  # of the processor: a tenth for each run, and half a second to start


@pytest.fixture
def locked(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that may not be entered; to root, who may enter all, it is said to be such a one."""
    folder = here / "locked"
    folder.mkdir()
    if os.geteuid() == 0:
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    folder.chmod(0)
    yield folder
    folder.chmod(0o700)


@pytest.mark.parametrize("name", ["", "/x.jsonl", "/sub/train", "/*.jsonl"])
def test_data_in_a_folder_that_may_not_be_entered(name: str, locked: Path) -> None:
    with refused(
        "may not be entered", locked, key="data.train", value=f"{locked}{name}", remedy=f"chmod u+rx {locked}"
    ):
        check_places(config(data__train=f"{locked}{name}"))


@pytest.mark.parametrize("key", ["model.path", "adapter.init_from", "replay", "data.path"])
def test_other_paths_in_a_folder_that_may_not_be_entered(key: str, locked: Path) -> None:
    source = {"data__source__path": "${data.path}"} if key == "data.path" else {}
    cfg = config(**{key.replace(".", "__"): f"{locked}/x"}, **source)
    with refused("may not be entered", locked, key=key, value=locked / "x", remedy=f"chmod u+rx {locked}"):
        check_places(cfg)


def test_a_run_in_a_folder_that_may_not_be_entered(locked: Path) -> None:
    with refused("may not be entered", locked, key="resume", value=locked / "run", remedy=f"chmod u+rx {locked}"):
        with_run_overrides([f"resume={locked}/run"])
    with refused("may not be entered", locked, key="sweep", value=locked, remedy=f"chmod u+rx {locked}"):
        find_runs(locked)


@pytest.mark.parametrize("value", [[], "x", None])
def test_something_else_in_place_of_the_data_section_is_reported_elsewhere(value: Any) -> None:
    cfg = config()
    OmegaConf.update(cfg, "data", value, merge=False)
    assert list(find_misplaced(cfg)) == []
