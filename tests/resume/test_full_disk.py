"""A disk that fills while a checkpoint is written: said, nothing lost, and gone on with once there is room."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from caldpo.checkpointing.manifest import TRAINING, checkpoint_folders, newest_intact
from tests.evaluation.runs import write_data
from tests.helpers.messages import names
from tests.resume.child import Kill
from tests.resume.runs import BASE, outcome, train

pytestmark = pytest.mark.slow

RUN = (*BASE, "trainer.max_steps=12", "model.hidden_size=64")  # large beside all the small files of a run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Data, and a run that always had room."""
    write_data(tmp_path)
    assert train(tmp_path, *RUN, "hydra.run.dir=whole").codes == (0,)
    return tmp_path


def same(place: Path, run: Path) -> None:
    whole, found = outcome(place / "whole"), outcome(run)
    assert [name for name in whole if found[name] != whole[name]] == []


def test_no_file_may_grow_beyond_a_quota(place: Path) -> None:
    """The third checkpoint's largest file is one byte too large."""
    last = list(checkpoint_folders(place / "whole").values())[-1]
    quota = (last / TRAINING).stat().st_size - 1
    ended = train(place, *RUN, "hydra.run.dir=full", kill=Kill("quota", 3, quota))
    said = " ".join(ended.said.split())
    assert ended.codes == (1,)
    names(said, "step 6", os.strerror(errno.EFBIG), "MiB", "step 5")
    names(said, remedy=("callbacks.checkpoint.keep", f"python -m caldpo.train resume={place / 'full'}"))
    found, manifest, damages = newest_intact(place / "full")
    assert found is not None
    assert manifest is not None
    assert (manifest.step, damages) == (5, [])
    assert not list((place / "full" / "checkpoints").glob(".*")), "no draft is left"
    assert train(place, "resume=full").codes == (0,)
    same(place, place / "full")


def test_a_file_system_that_is_full(place: Path) -> None:
    """A tmpfs with room for two checkpoints, but not for the third that is written before the first one goes."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no file system of one's own may be mounted here (unshare -rm)")
    last = list(checkpoint_folders(place / "whole").values())[-1]
    one = sum(path.stat().st_size for path in last.iterdir())
    disk, kept = place / "disk", place / "kept"
    disk.mkdir()
    python = f"{sys.executable} -m caldpo.train"
    (place / "steps.sh").write_text(
        f"mount -t tmpfs -o size={2 * one + one // 2 + 200_000} none {disk} || exit 77\n"
        f"{python} {' '.join(RUN)} hydra.run.dir={disk}/run > first.txt 2>&1\n"
        "echo $? > code.txt\n"
        f"df {disk} > room.txt; ls {disk}/run/checkpoints > left.txt; cp {disk}/run/summary.json .\n"
        f"mount -o remount,size=50m {disk} && {python} resume={disk}/run > second.txt 2>&1\n"
        f"cp -r {disk}/run {kept}\n"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "steps.sh"], cwd=place, check=False, timeout=200)
    if done.returncode == 77:
        pytest.skip("no tmpfs may be mounted here")
    said = " ".join((place / "first.txt").read_text().split())
    assert (place / "code.txt").read_text() == "1\n", said
    names(said, "step 6", "step 5", remedy=f"resume={disk}/run")
    assert (place / "left.txt").read_text().split() == ["step-3", "step-5"], "the last good ones, and no draft"
    same(place, kept)
