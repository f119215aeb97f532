"""Whatever a command line says: it is checked and named, or refused with a CaldpoError, the same each time."""

from __future__ import annotations

import functools
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from caldpo.config.conf_dir import conf_dir
from caldpo.config.hydra_session import hydra_session
from caldpo.config.overrides import with_quoted_paths
from caldpo.config.preflight import preflight
from caldpo.config.validation import find_problems
from caldpo.data.source_paths import find_misplaced
from caldpo.errors import CaldpoError
from caldpo.run_settings import find_config_problems
from tests.fuzz.effort import fuzz
from tests.fuzz.values import anything, texts

pytestmark = pytest.mark.slow

SETTINGS = "caldpo.run_settings.RunSettings"
GROUPS = {path.name: sorted(file.stem for file in path.iterdir()) for path in conf_dir().iterdir() if path.is_dir()}
VALUES = (
    "null", "true", "-1", "0", "1", "1.5", "1e999", "nan", "inf", "???", "", "''", "'a b'", '"', "[1,2]", "[", "{a: 1}",
    "{", "1,2", "a,b,a", "range(1,3)", "interval(0,1)", "choice(1,2)", "shuffle(1,2)", "glob(*)", "sort(2,1)", "int(3)",
    "${seed}", "${nope}", "${", "$", "${oc.env:HOME}", "${oc.env:NOPE}", "${loss}", "${now:%Y}", "../..", "/", "~",
    "~x/y", "a/b/c", "a" * 5000, "9" * 5000, "\\", "a\\,b", "a=b", "@", "a:b", "\0", "é", "\udcff", "val/terms/nll",
    "oracle/kl", "/dev/null", ".", "x.jsonl", "1_000", "0x10", "1:2",
)  # fmt: skip
# keys of Hydra's own that name no folder
HARMLESS = (
    "hydra.job.name", "hydra.job.num", "hydra.job.chdir", "hydra.job.env_set", "hydra.sweep.subdir", "hydra.verbose",
    "hydra.output_subdir", "hydra.launcher.n_jobs", "hydra.sweeper.max_batch_size", "hydra.nope", "hydra/launcher",
    "hydra/job_logging",
)  # fmt: skip


@functools.cache
def base() -> DictConfig:
    """The configuration of a plain training run."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train")


@functools.cache
def keys() -> list[str]:
    """Every dotted key of it."""

    def below(section: DictConfig, path: str) -> list[str]:
        found: list[str] = []
        for key in section:
            name = f"{path}{key}"
            inner = section._get_node(key)
            found += [name, *(below(inner, f"{name}.") if isinstance(inner, DictConfig) else [])]
        return found

    return below(base(), "")


known = st.deferred(lambda: st.sampled_from(keys()))
spoilt = st.builds(lambda key, text, at: key[:at] + text + key[at + 1 :], known, texts, st.integers(0, 9))
named = known | st.sampled_from(sorted(GROUPS)) | spoilt
option = st.sampled_from([f"{group}={name}" for group, names in GROUPS.items() for name in names])
of_hydra = st.builds(
    "{}{}={}".format, st.sampled_from(["", "+", "~"]), st.sampled_from(HARMLESS), st.sampled_from(VALUES)
)
override = (
    st.builds("{}{}={}".format, st.sampled_from(["", "", "+", "++", "~"]), named, st.sampled_from(VALUES) | texts)
    | option
    | of_hydra
    | st.builds("{},{}".format, option, texts)
    | texts
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current folder of all command lines."""
    return tmp_path_factory.mktemp("fuzz")


def outcome(overrides: list[str], multirun: bool) -> list[str] | str:
    """What the check adds to a command line, or the message with which it refuses it."""
    try:
        quoted = with_quoted_paths(overrides)
        with hydra_session("train") as session:
            return preflight(session, quoted, multirun=multirun, settings=SETTINGS, agree=find_config_problems)[1]
    except CaldpoError as error:
        return str(error)


@fuzz(24, cost=20, overrides=st.lists(override, max_size=4), multirun=st.booleans())
def test_any_command_line(overrides: list[str], multirun: bool, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_hydra = [text.partition("=")[0].strip("+~ ") for text in overrides if "hydra" in text]
    assume(set(of_hydra) <= set(HARMLESS))  # folders of anybody's choice would be made
    monkeypatch.chdir(place)
    beside = set(place.parent.iterdir())
    first = outcome(overrides, multirun)
    if isinstance(first, str):
        assert first
        if zlib.crc32(first.encode()) % 4 == 0:  # a second look takes as long as another input
            assert outcome(overrides, multirun) == first
    else:
        assert all("=" in added for added in first)
    assert set(place.parent.iterdir()) == beside
    assert {path.name for path in place.iterdir()} <= {"outputs"}
    shutil.rmtree(place / "outputs", ignore_errors=True)


@fuzz(100, cost=4, changes=st.dictionaries(known, anything, min_size=1, max_size=3))
def test_any_values(changes: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found problems are about what was changed, or about what refers to it."""
    monkeypatch.chdir(place)
    cfg = base().copy()
    for key, value in changes.items():
        try:
            OmegaConf.update(cfg, key, value, merge=False)
        except (OmegaConfBaseException, ValueError, TypeError, RecursionError, AttributeError):
            assume(False)  # no configuration can hold it, or the key lies in what another change replaced
    problems = [*find_problems(cfg, SETTINGS), *find_misplaced(cfg)]
    assert problems == [*find_problems(cfg, SETTINGS), *find_misplaced(cfg)]
    for problem in problems:
        assert problem.key
        assert problem.message
