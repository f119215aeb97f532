"""Every command of README.md and docs/ that takes a model or a run, run: on a tiny model in a folder, on one CPU.

What a command names and is not here has a stand-in: a folder for a model's id, two files for the hub's pairs, the CPU
for GPUs, one step for hundreds.
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.evaluation.runs import evaluate, inside
from tests.helpers.command import call, train
from tests.helpers.documents import commands
from tests.road.folders import rows, write_classifier, write_model, write_rows

SMALL = (
    "trainer.max_steps=1",
    "trainer.progress_bar=false",
    "logger=csv",
    "console=compact",
    "data.preview_pairs=0",
    "callbacks.samples.prompts=1",
    "callbacks.samples.max_new_tokens=2",
    "callbacks.oracle.max_new_tokens=4",
    "callbacks.oracle.prompts=4",
)
PAIRS = ("data=local", "data.train=train.jsonl", "data.test=test.jsonl")
NOT_HERE = ("trainer=", "trainer.devices=", "trainer.num_nodes=", "trainer.max_steps=", "hydra/launcher=", "hydra.")
ASKS_OTHERS = (
    "suite=judge",
    "suite=leaderboard",
)  # an endpoint, the hub; tests/evaluation has servers and tasks for them
MEASURES = ("preference.resamples=5", "displacement.resamples=5", "oracle.resamples=5", "oracle.prompts=4")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model, pairs, ``outputs/RUN`` and the two runs of ``outputs/SWEEP``, in the current folder."""
    folder = tmp_path_factory.mktemp("readme")
    write_model(folder / "model", "llama")
    write_rows(folder)
    for name in ("train.jsonl", "test.jsonl"):
        with gzip.open(folder / f"{name}.gz", "wb") as file:
            file.write((folder / name).read_bytes())
    write_own_pairs(folder)
    with inside(folder):
        begun = [*here(["model=hf"]), "trainer.max_steps=2", "callbacks.checkpoint.every=1", "optim.lr=0.01"]
        train(*begun, "callbacks.checkpoint.monitor=val/loss", "hydra.run.dir=outputs/RUN")
        train("-m", *begun, "loss=dpo,cal_dpo", "hydra.sweep.dir=outputs/SWEEP")
        yield folder


def write_own_pairs(folder: Path) -> None:
    """The files and folders that the commands on pairs of one's own name."""
    for name in ("FOLDER", "shards", "OWNER/NAME/data"):
        (folder / name).mkdir(parents=True)
    (folder / "FOLDER/train.jsonl").write_text((folder / "train.jsonl").read_text())
    (folder / "a.jsonl").write_text((folder / "train.jsonl").read_text())
    for number in range(2):
        table = pa.Table.from_pylist(rows(12, 3 + number))
        pq.write_table(table, folder / f"shards/train-0000{number}-of-00002.parquet")
    for split, seed in (("train", 5), ("test", 6)):
        table = pa.Table.from_pylist(rows(12, seed))
        pq.write_table(table, folder / f"OWNER/NAME/data/{split}_prefs-00000-of-00001.parquet")
    for file, names in (("b.csv", ("prompt", "chosen", "rejected")), ("train.csv", ("ask", "good", "bad", "images"))):
        with (folder / file).open("w", newline="") as lines:
            writer = csv.writer(lines)
            writer.writerow(names)
            writer.writerows([json.dumps(turns) for turns in [*row.values(), []][: len(names)]] for row in rows(24, 7))


def here(words: list[str]) -> list[str]:
    """The overrides of a training command as they can be run here."""
    kept = [w for w in words if not w.startswith(NOT_HERE)]
    local = [w for w in kept if w == "data=hub" or not w.startswith(("data=", "model.path="))]
    given = {w.partition("=")[0] for w in local}
    pairs = [w for w in PAIRS if w.partition("=")[0] not in given]
    if "data.train" in given:  # and its own test split, or none
        pairs = [w for w in pairs if not w.startswith("data.test=")]
    return [*local, *pairs, "model.path=model", "trainer=cpu", "trainer.precision=32-true", *SMALL]


def takes_a_model(words: list[str]) -> bool:
    return any(w.startswith(("model=", "experiment=")) for w in words) and "experiment=demo" not in words


TRAININGS = [w for w in commands("train") if takes_a_model(w) and "experiment=tabular" not in w]
EVALUATIONS = [w for w in commands("evaluate") if not any(word.startswith(ASKS_OTHERS) for word in w)]
ESTIMATES = [w for w in commands("estimate") if takes_a_model(w)]


@pytest.mark.slow
@pytest.mark.parametrize("words", TRAININGS, ids=" ".join)
def test_training(words: list[str], home: Path, request: pytest.FixtureRequest) -> None:
    if any(word.startswith("adapter=") for word in words):
        pytest.importorskip("peft")
    if any(word.startswith("experiment=") for word in words):
        words = [word for word in words if word != "-m"]  # its grid is that of another test: one run of it
    name = f"runs/{request.node.callspec.indices['words']}"
    train(*here(words), f"hydra.sweep.dir={name}" if "-m" in words else f"hydra.run.dir={name}")
    if "dry_run=true" in words:
        assert json.loads(Path(name, "estimate.json").read_text())
        return
    summaries = [json.loads(file.read_text()) for file in Path(name).rglob("summary.json")]
    assert {(s["status"], s["steps"]) for s in summaries} == {("finished", 1)}


@pytest.mark.slow
@pytest.mark.parametrize("words", ESTIMATES, ids=" ".join)
def test_estimate(words: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from caldpo.estimate import main

    call(main, [*here(words), "console=full"], None)
    assert "fit" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("words", EVALUATIONS, ids=" ".join)
def test_evaluation(words: list[str], home: Path) -> None:
    for file in Path("outputs").rglob("evaluation/**/*.json"):
        file.unlink()
    if any(word.startswith("model.path=") for word in words):
        words = [w for w in words if not w.startswith(("data=", "model.path=", "reference.path="))]
        words = ["model.path=outputs/RUN/policy", "reference.path=model", *PAIRS, *words]
    suites = next((word for word in words if word.startswith("suite=")), "suite=[preference,displacement]")
    if "oracle" in suites:  # which wants a reward
        write_classifier(home / "classifier")
        words = [*words, "oracle.classifier=classifier", "oracle.positive_label=LABEL_1"]
    evaluate(*words, *(m for m in MEASURES if m.partition(".")[0] in suites), "overwrite=true")
    measured = {file.stem for file in Path("outputs").rglob("evaluation/**/*.json")}
    assert measured == set(suites.partition("=")[2].strip("[]").split(","))


@pytest.mark.slow
@pytest.mark.parametrize("words", commands("generate"), ids=" ".join)
def test_generation(words: list[str], home: Path) -> None:
    from caldpo.generate import main

    call(main, [*words, "count=1", "max_new_tokens=2"], None)
    assert Path("outputs/RUN/evaluation/generations.csv").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("words", commands("export"), ids=" ".join)
def test_export(words: list[str], home: Path) -> None:
    from caldpo.export import main

    if "merge=true" in words:  # an adapter's, to the hub
        pytest.importorskip("peft")
        train(*here(["model=hf", "adapter=lora"]), "hydra.run.dir=outputs/ADAPTED")
        words = ["outputs/ADAPTED", "merge=true", "to=exports/merged"]
    call(main, [word.replace("step-200", "step-1") for word in words], None)
    assert list(Path("exports").rglob("*.safetensors")) or list(Path("outputs/exports").rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [w for w in commands("compare") if w and "watch=true" not in w],  # tests/report/test_live_page.py stops that one
    ids=" ".join,
)
def test_comparison(words: list[str], home: Path) -> None:
    from caldpo.compare import main

    Path("chart.csv").write_text("trainer/global_step,loss=ipo seed=0 - val/log_ratios/chosen\n0,0\n1,-0.5\n")
    if "outputs/ANOTHER" in words and not Path("outputs/ANOTHER").exists():
        shutil.copytree("outputs/SWEEP", "outputs/ANOTHER")
    call(main, words, None)
    output = next((word.partition("=")[2] for word in words if word.startswith("output=")), "outputs/SWEEP")
    if len([word for word in words if "=" not in word]) > 1 and "output=" not in "".join(words):
        (output,) = Path("outputs").glob("compare_*")
    assert Path(output, "report.md").is_file()
