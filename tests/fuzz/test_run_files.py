"""Whatever happened to a file of a run's folder: what reads it refuses it with a reason, or gives a sound result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from caldpo.checkpointing.checkpoint_io import CheckpointFolders
from caldpo.checkpointing.manifest import DamagedCheckpointError, newest_intact, read_manifest
from caldpo.config.summary_file import known_summary, read_summary
from caldpo.errors import CaldpoError
from caldpo.metrics_file import RowWriter, keep_rows, read_rows
from caldpo.nonfinite.step_dump import StepDump, read_dump
from caldpo.replay.replay_run import batches_of
from caldpo.report.comparison_table import comparison_rows
from caldpo.report.grouping import group_runs
from caldpo.report.markdown_report import report
from caldpo.report.read_runs import read_run
from caldpo.report.run_files import Run
from caldpo.report.shown_metrics import CHOSEN
from caldpo.resume.config_diff import config_digest, differences, read_config
from caldpo.resume.resume_command import with_run_overrides
from caldpo.resume.resume_point import ResumePoint
from caldpo.sweep_report import collect
from caldpo.utils.atomic_io import write_text
from tests.fuzz.effort import fuzz
from tests.fuzz.run_folder import DUMP, FILES, ROWS, STEPS, damaged, harms, write_folder
from tests.fuzz.values import anything

pytestmark = pytest.mark.slow

CHECKPOINT = f"checkpoints/step-{max(STEPS)}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run; each test leaves it as it was."""
    return write_folder(tmp_path_factory.mktemp("fuzz"))


def outcome(read: Callable[[], Any]) -> Any:
    """What a reader gives, or the message with which it refuses."""
    try:
        return read()
    except (CaldpoError, DamagedCheckpointError) as error:
        refusal = error
    assert str(refusal).encode()
    return refusal


def summary_is_sound(run: Path) -> None:
    found, known = outcome(lambda: read_summary(run)), known_summary(run)
    assert (run / "summary.json").name in str(found) if isinstance(found, CaldpoError) else repr(found) == repr(known)
    for name, kind in {"status": str, "overrides": list, "metrics": dict, "stretches": int, "steps": int}.items():
        assert isinstance(known.get(name, kind()), kind)
    for told in collect(run.parent):
        assert f"{told.status} {told.error}".encode()


def configuration_is_sound(run: Path) -> None:
    config = outcome(lambda: read_config(run))
    if config is None:  # the run ended before it wrote it
        assert not (run / "config.yaml").exists()
    elif isinstance(config, CaldpoError):
        assert str(run / "config.yaml") in str(config)
    else:
        assert len(config_digest(config)) == 64
        assert "".join(differences({"loss": {"beta": 0.1}}, config)).encode()


def metrics_are_sound(run: Path) -> None:
    path = run / "metrics.csv"
    rows = read_rows(path)
    assert all(isinstance(float(cell or 0), float) and row["step"].isdecimal() for row in rows for cell in row.values())
    if isinstance(outcome(lambda: keep_rows(path, 4)), CaldpoError):
        assert len(rows) < 4
    else:
        RowWriter(path).write({"another": 0.5}, 4)  # as a resumed run does
        assert [row["step"] for row in read_rows(path)] == [row["step"] for row in rows[:4]] + ["4"]


def resuming_is_sound(run: Path) -> None:
    found = outcome(lambda: with_run_overrides([f"resume={run}"]))
    if not isinstance(found, CaldpoError):
        assert all(isinstance(text, str) for text in found)
        assert found[-1].startswith("hydra.run.dir=")
    start = outcome(lambda: ResumePoint.find(run, resumed=True))
    if not isinstance(start, CaldpoError):
        assert start.manifest.step == int(start.checkpoint.name.partition("-")[2])
        assert start.manifest.rows == len(start.earlier) == 9


def checkpoint_is_sound(run: Path) -> None:
    folder, manifest, damages = newest_intact(run)
    assert folder is not None
    assert manifest is not None
    assert len(damages) == (folder.name != Path(CHECKPOINT).name)  # the other one is whole
    loaded = outcome(lambda: CheckpointFolders().load_checkpoint(folder))
    if isinstance(loaded, CaldpoError):  # a manifest that vouches for what was never written: for other names
        assert manifest.same != read_manifest(folder.with_name(f"step-{min(STEPS)}")).same
    else:
        assert loaded["state_dict"]["policy.count"] == 3
    outcome(lambda: CheckpointFolders().load_checkpoint(run / CHECKPOINT))


def dump_is_sound(run: Path) -> None:
    dump = outcome(lambda: read_dump(run / DUMP))
    if not isinstance(dump, CaldpoError):
        require_sound_dump(dump)


def require_sound_dump(dump: StepDump) -> None:
    """Everything that a replay reads of it can be read."""
    batches = batches_of(dump, 0, "padded")
    assert sum(batch.pairs for batch in batches) == len(dump.pairs)
    assert all(batch.input_ids.dtype == torch.int64 for batch in batches)
    assert all(isinstance(value, float) for pair in dump.pairs for value in pair.values.values())
    assert "".join([*(pair.origin for pair in dump.pairs), dump.reason, dump.formula]).encode()
    assert dump.gradient_scale > 0
    assert dump.rank < dump.ranks


def comparison_is_sound(run: Path) -> None:
    found = read_run(run, run.parent)
    assert isinstance(found, Run)
    assert all(isinstance(value, float) for value in found.final.values())
    assert f"{found.progress} {found.error} {found.notes} {found.loss}".encode()
    settings = group_runs([found])
    columns, (row,) = comparison_rows(settings)
    assert len(row) == len(columns)
    if found.finished and CHOSEN.curve(found.curves):  # else there is nothing to compare, which is said
        write_text(run.parent / "report.md", report(settings, [run.parent], "range", []))


CHECKS: dict[str, Callable[[Path], None]] = {
    "summary": summary_is_sound,
    "configuration": configuration_is_sound,
    "resuming": resuming_is_sound,
    "checkpoint": checkpoint_is_sound,
    "dump": dump_is_sound,
    "comparison": comparison_is_sound,
    "metrics": metrics_are_sound,  # the last one: it writes
}


def check_with(run: Path, name: str, content: bytes) -> None:
    """Every check with one file as given; the folder is as before afterwards."""
    path, metrics = run / name, run / "metrics.csv"
    kept = {file: file.read_bytes() for file in (path, metrics)}
    path.write_bytes(content)
    try:
        for check in CHECKS.values():
            check(run)
    finally:
        for file, was in kept.items():
            file.write_bytes(was)


def test_the_folder_itself_is_sound(run: Path) -> None:
    check_with(run, "config.yaml", (run / "config.yaml").read_bytes())
    assert len(read_rows(run / "metrics.csv")) == len(ROWS)
    assert newest_intact(run)[0] == run / CHECKPOINT
    assert read_run(run, run.parent).notes == ()
    assert read_run(run, run.parent).finished
    assert len(read_dump(run / DUMP).pairs) == 3


@pytest.mark.parametrize("name", FILES)
@fuzz(50, cost=4, harm=harms)
def test_any_file_damaged(name: str, harm: Any, run: Path) -> None:
    content = damaged(name, (run / name).read_bytes(), harm)
    if content is not None:
        check_with(run, name, content)


@pytest.mark.parametrize("name", FILES)
def test_any_file_missing_or_a_folder(name: str, run: Path) -> None:
    path = run / name
    content = path.read_bytes()
    path.unlink()
    try:
        for check in (
            summary_is_sound,
            configuration_is_sound,
            checkpoint_is_sound,
            dump_is_sound,
            comparison_is_sound,
        ):
            check(run)
        path.mkdir()
        for check in (summary_is_sound, configuration_is_sound, dump_is_sound, comparison_is_sound):
            check(run)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        path.write_bytes(content)


keys = st.sampled_from(
    ["format", "step", "rank", "ranks", "reason", "loss", "formula", "layout", "micro_batches", "gradient_scale",
     "step_pairs", "checkpoint", "pairs"]
)  # fmt: skip
pair_keys = st.sampled_from(
    ["origin", "index", "is_real", "prompt_ids", "chosen_ids", "rejected_ids", "scores", "values"]
)


@fuzz(
    250,
    facts=st.dictionaries(keys, anything, max_size=2),
    pair_facts=st.dictionaries(pair_keys, anything | st.lists(st.integers(-1, 2**40)), max_size=2),
    left_out=st.sampled_from(["", "", "pairs", "prompt_ids", "origin", "gradient_scale", "format"]),
)
def test_any_parts_of_a_dump(facts: Any, pair_facts: Any, left_out: str, run: Path) -> None:
    content = json.loads((run / DUMP).read_text())
    content["pairs"][1] |= pair_facts
    content["pairs"][1].pop(left_out, None)
    content |= facts
    content.pop(left_out, None)
    other = run.parent / "other.json"
    other.write_text(json.dumps(content))
    dump = outcome(lambda: read_dump(other))
    if isinstance(dump, CaldpoError):
        assert str(other) in str(dump)
    else:
        require_sound_dump(dump)
