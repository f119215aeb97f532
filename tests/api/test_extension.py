"""The package in docs/examples/extension: its own test, and a run with all that it brings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from transformers import AutoTokenizer

import caldpo
from tests.helpers.documents import ROOT, blocks
from tests.helpers.messages import refused
from tests.road.folders import write_model

EXTENSION = ROOT / "docs/examples/extension"

pytestmark = pytest.mark.skipif(not EXTENSION.is_dir(), reason="an installed wheel has no pages")


def test_its_own_test_passes() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "tests"]
    path = os.pathsep.join([str(EXTENSION), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=EXTENSION, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_run_is_made_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXTENSION))
    write_model(Path("model"), "llama")
    run = caldpo.fit(
        "model",
        "colours",
        loss="own_hinge",
        lr=0.02,
        max_steps=6,
        settings={
            "callbacks": "floor",
            "callbacks.floor.floor": 1000,
            "callbacks.oracle.prompts": 4,
            "callbacks.oracle.max_new_tokens": 4,
            "callbacks.samples.prompts": 0,
            "data.micro_batch_size": 8,
            "data.source.train_pairs": 32,
            "loss.margin": 3,
            "trainer": "cpu",
            "trainer.val_check_interval": 2,
        },
        config_dir=EXTENSION / "conf",
    )
    assert run.metrics["loss"].iloc[0] == pytest.approx(3.0), "the margin, while policy and reference are equal"
    assert run.summary["loss_name"] == "own_hinge"
    assert run.summary["data"]["train"]["pairs"] == 32
    # the callback ended the run at its first evaluation after the start, and said so
    assert run.summary["steps"] == 2
    (alarm,) = [alarm for alarm in run.summary["alarms"] if alarm["alarm"] == "likelihood_floor"]
    assert alarm["step"] == 2
    # the reward of the reference's samples is the template's own
    assert -0.05 * 64 <= run.final["oracle/reward"] <= 1
    assert run.policy.config.vocab_size == len(AutoTokenizer.from_pretrained("model"))
    # another process, or person, has to say that the source may be built
    with refused("own_alignment.colour_source.ColourQuestions", remedy="allow_untrusted_code=true"):
        caldpo.evaluate(str(run.folder), suites="preference")
    measures = caldpo.evaluate(run, suites="preference").set_index("measure")
    assert measures.loc["accuracy", "n"] == 16
    assert isinstance(measures, pd.DataFrame)


def test_the_readme_names_what_is_there() -> None:
    text = (EXTENSION / "README.md").read_text()
    for path in EXTENSION.rglob("*.*"):
        if path.suffix in (".py", ".yaml") and path.name != "__init__.py":
            assert f"`{path.relative_to(EXTENSION).as_posix()}`" in text, path
    for block in blocks(EXTENSION / "README.md", "sh"):
        for line in block.splitlines():
            named = [
                word.partition("=")[2] for word in line.split() if word.startswith(("loss=", "data=", "callbacks="))
            ]
            for group, value in (word.partition("=")[::2] for word in line.split() if "=" in word):
                own = EXTENSION / "conf" / group
                if own.is_dir():
                    options = {file.stem for file in own.glob("*.yaml")} | {
                        file.stem for file in (caldpo.conf_dir() / group).glob("*.yaml")
                    }
                    assert set(value.split(",")) <= options
            assert named or "evaluate" in line
    for file in EXTENSION.rglob("*.yaml"):
        assert "_target_" in str(yaml.safe_load(file.read_text()))
