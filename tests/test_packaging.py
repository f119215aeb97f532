"""The wheel carries conf/ and works from any folder, without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.tiny import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files, as pip lays them out."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(site: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "WANDB_MODE": "offline"}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_every_yaml_and_template_is_in_the_wheel(installed: Path) -> None:
    def names(folder: Path) -> set[str]:
        return {str(p.relative_to(folder)) for p in folder.rglob("*.yaml")}

    assert names(installed / "caldpo" / "conf") == names(ROOT / "conf")
    assets = [path for path in (ROOT / "caldpo").rglob("*.*") if path.suffix in (".j2", ".css", ".js")]
    assert {path.suffix for path in assets} == {".j2", ".css", ".js"}
    assert all((installed / path.relative_to(ROOT)).is_file() for path in assets)
    assert not (installed / "conf").exists()
    assert not (installed / "tests").exists()


def test_help_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "caldpo.train", "--info", "searchpath")
    assert str(installed / "caldpo" / "conf") in done.stdout, done.stdout + done.stderr
    assert "cal_dpo" in run(installed, tmp_path, "caldpo.train", "--help").stdout


def test_a_run_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = [{"prompt": f"w{i} w2", "chosen": " w3 w4", "rejected": " w5"} for i in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = run(
        installed,
        tmp_path,
        "caldpo.train",
        "data=local",
        "data.train=pairs.jsonl",
        "data.test_fraction=0.4",
        "model=random",
        "model.tokenizer=tokenizer",
        "trainer.max_steps=1",
        "logger=csv",
        "hydra.run.dir=here",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "here" / "summary.json").read_text())["status"] == "finished"
    assert (tmp_path / "here" / "metrics.csv").exists()
