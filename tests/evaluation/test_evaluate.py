"""The command on a run, a sweep and a model: what is written, what is not done twice, what a failure costs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from caldpo.config.run_lock import EVALUATION, run_lock
from caldpo.evaluation import evaluated_policy
from tests.evaluation.runs import QUICK, evaluate, inside, result, runs, value
from tests.helpers.messages import names


@pytest.fixture(scope="module")
def evaluated(sweep: Path) -> dict[str, int]:
    """The sweep evaluated by the default suites, and how often the reference was loaded and asked for pairs."""
    counts = {"loaded": 0, "scored": 0}
    load, score = evaluated_policy.EvaluatedPolicy._load_reference, evaluated_policy.score_pairs

    def counted_load(self: evaluated_policy.EvaluatedPolicy, path: str | None) -> object:
        counts["loaded"] += 1
        return load(self, path)

    def counted_score(*arguments: object, label: str, **keys: object) -> object:
        counts["scored"] += label == "reference: log-probs"
        return score(*arguments, label=label, **keys)

    with inside(sweep.parent), pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluated_policy.EvaluatedPolicy, "_load_reference", counted_load)
        patch.setattr(evaluated_policy, "score_pairs", counted_score)
        evaluate("sweep", *QUICK)
    return counts


def test_every_run_has_its_results(sweep: Path, evaluated: dict[str, int]) -> None:
    assert len(runs(sweep)) == 4
    for run in runs(sweep):
        logged = json.loads((run / "summary.json").read_text())["metrics"]
        content = result(run, "preference")
        assert value(content, "accuracy") == pytest.approx(logged["val/rewards/accuracies"])
        assert value(result(run, "displacement"), "chosen_fell") == pytest.approx(logged["val/displacement"])
        assert sorted(path.name for path in (run / "evaluation").iterdir()) == [
            "displacement.json",
            "preference.json",
            "preference_pairs.csv",
        ]


def test_a_result_says_what_determined_it(sweep: Path, evaluated: dict[str, int]) -> None:
    content = result(runs(sweep)[0], "preference")
    facts = content["determined_by"]
    assert facts["suite"] == {"bins": 10, "resamples": 20, "confidence": 0.95}
    assert facts["settings"]["seed"] == 0
    assert facts["step"] == 8
    assert facts["reference"].startswith("the policy's starting weights")
    assert {"caldpo", "torch", "transformers"} <= facts["versions"].keys()
    assert facts["weights"][0][0][0] == "model.safetensors"
    assert content["examples"] == 40


def test_one_reference_serves_the_whole_sweep(evaluated: dict[str, int]) -> None:
    assert evaluated == {"loaded": 1, "scored": 1}


def test_the_report_has_the_new_columns(sweep: Path, evaluated: dict[str, int]) -> None:
    table = pd.read_csv(sweep / "comparison.csv")
    (column,) = [name for name in table.columns if name.endswith("preference/accuracy")]
    assert table[column].tolist() == pytest.approx(table["rewards/accuracies"].tolist())
    assert "calibration error" in (sweep / "report.md").read_text()


def test_nothing_is_measured_twice_unless_it_is_asked_for(
    sweep: Path, evaluated: dict[str, int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {run: result(run, "preference")["date"] for run in runs(sweep)}
    monkeypatch.setattr("caldpo.evaluation.suites.preference.Preference.run", lambda *_: pytest.fail("measured again"))
    with inside(sweep.parent):
        evaluate("sweep", "suite=preference", *QUICK[:1])
    assert capsys.readouterr().out.count("overwrite=true") == 4
    assert {run: result(run, "preference")["date"] for run in runs(sweep)} == before
    monkeypatch.undo()
    run = runs(sweep)[0]
    with inside(sweep.parent):
        evaluate(str(run), "suite=preference", "preference.resamples=21")
    assert result(run, "preference")["determined_by"]["suite"]["resamples"] == 21, "another setting is another result"
    (run / "evaluation" / "preference.json").write_text("{")
    with inside(sweep.parent):
        evaluate(str(run), "suite=preference", *QUICK[:1])
    assert value(result(run, "preference"), "accuracy") > 0, "a damaged file is no result"


def test_one_command_at_a_time_writes_results_also_while_the_run_is_trained(
    sweep: Path, evaluated: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs(sweep)[0]
    with inside(sweep.parent), run_lock(run):
        with run_lock(run / "evaluation", EVALUATION):
            evaluate(str(run), "suite=preference", fails=1)
        names(capsys.readouterr().err, run / "evaluation", remedy=f"kill {os.getpid()}")
        evaluate(str(run), "suite=preference", *QUICK[:1])


def test_other_weights_are_measured_anew(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = runs(sweep)[0], runs(sweep)[2]
    copied = Path(shutil.copytree(first, tmp_path / "copy"))
    with inside(sweep.parent):
        evaluate(str(copied), "suite=preference", *QUICK[:1])
        before = value(result(copied, "preference"), "margin")
        shutil.copy(second / "policy" / "model.safetensors", copied / "policy" / "model.safetensors")
        evaluate(str(copied), "suite=preference", *QUICK[:1])
    after = result(copied, "preference")
    assert value(after, "margin") != pytest.approx(before)
    assert "logged" in after["notes"][0], "weights of another run"
    names(capsys.readouterr().out, "python -m caldpo.compare")


def test_a_run_that_cannot_be_evaluated_costs_the_others_nothing(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without weights, one that crashed before it wrote its configuration, one that fails as nobody foresaw."""
    copied = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    _, second, third, fourth = runs(copied)
    shutil.rmtree(second / "policy")
    shutil.rmtree(second / "checkpoints")
    (third / "config.yaml").unlink()
    Path(shutil.copytree(fourth / ".hydra", copied / "crashed" / ".hydra"))
    (fourth / "summary.json").write_text('{"status": "fin')

    load = evaluated_policy.load_weights

    def fails_once(weights: object, source: object, adapter: object, target: evaluated_policy.Target) -> object:
        if target.run == fourth:
            raise RuntimeError("out of memory")
        return load(weights, source, adapter, target)

    monkeypatch.setattr(evaluated_policy, "load_weights", fails_once)
    with inside(sweep.parent):
        evaluate(str(copied), "suite=preference", "overwrite=true", *QUICK[:1], fails=1)
        printed = capsys.readouterr().out
        names(printed, "1 of 5", "checkpoint=final", f"{fourth}/summary.json:", "report.md")
        names(printed, f"{third}/config.yaml:", f"{copied}/crashed/config.yaml:")
        shutil.copy(runs(sweep)[3] / "summary.json", fourth / "summary.json")
        evaluate(str(copied), "suite=preference", "overwrite=true", *QUICK[:1], fails=1)
    names(capsys.readouterr().out, "RuntimeError: out of memory")
    assert "fails_once" in (fourth / "evaluation" / "error.txt").read_text(), "the traceback is kept"


def test_a_suite_that_does_not_suit_the_data_costs_the_others_nothing(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """These pairs have no known true reward."""
    copied = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    for run in runs(copied):
        shutil.rmtree(run / "evaluation", ignore_errors=True)
    with inside(sweep.parent):
        evaluate(str(copied), "suite=[preference,oracle]", *QUICK[:1])
        printed = capsys.readouterr().out
        assert printed.count("left out: suite=oracle: the true reward") == 4
        names(printed, "4 of 4 runs evaluated", "report.md")
        assert all(value(result(run, "preference"), "accuracy") > 0 for run in runs(copied))
        evaluate(str(runs(copied)[0]), "suite=oracle", fails=1)
        names(capsys.readouterr().err, "error: suite=oracle: the true reward")
        evaluate(str(copied), "suite=oracle", fails=1)
        names(capsys.readouterr().out, "0 of 4 runs evaluated")


def test_a_model_by_its_name(sweep: Path, tmp_path: Path) -> None:
    """The export of a run, with the run's start as the reference: the run's own figures."""
    run = runs(sweep)[0]
    with inside(sweep.parent):
        from caldpo.models.random_init import RandomModel

        source = RandomModel(tokenizer="tokenizer", hidden_size=16)
        source.load_policy().save_pretrained(tmp_path / "start")
        evaluate(
            f"model.path={run}/policy",
            f"reference.path={tmp_path}/start",
            "data=local",
            "data.train=train.jsonl",
            "data.test=test.jsonl",
            "suite=[preference,displacement]",
            *QUICK,
        )
        (file,) = Path("outputs/evaluation").glob("*/evaluation/preference.json")
        assert file.parts[2].endswith("-policy"), "named after the whole path: every run's export is called policy"
        content = json.loads(file.read_text())
    logged = json.loads((run / "summary.json").read_text())["metrics"]
    assert value(content, "log_ratio_chosen") == pytest.approx(logged["val/log_ratios/chosen"], rel=1e-5)
    assert value(content, "margin") == pytest.approx(logged["val/rewards/margins"], rel=1e-5)


def test_a_model_alone_has_no_reference(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs(sweep)[0]
    with inside(sweep.parent):
        data = ("data=local", "data.train=train.jsonl", "data.test=test.jsonl")
        evaluate(f"model.path={run}/policy", *data, "suite=preference", fails=1)
    names(capsys.readouterr().err, "reference.path:", "suite=preference")


def test_another_reference_of_ones_own(sweep: Path, tmp_path: Path) -> None:
    """Against itself a policy has no margin."""
    run = runs(sweep)[0]
    with inside(sweep.parent):
        evaluate(str(run), "suite=preference", f"reference.path={run}/policy", f"output={tmp_path}", *QUICK[:1])
    content = json.loads((tmp_path / "evaluation" / "preference.json").read_text())
    assert value(content, "margin") == pytest.approx(0, abs=1e-5)
    assert content["determined_by"]["reference"].endswith("/policy")
    (note,) = content["notes"]
    names(note, f"{run}/policy", "reference")


def test_a_reference_of_another_vocabulary_is_refused(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = AutoConfig.for_model("llama", vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with inside(sweep.parent):
        evaluate(str(runs(sweep)[0]), "suite=preference", f"reference.path={tmp_path}", "overwrite=true", fails=1)
    names(capsys.readouterr().err, tmp_path, "vocabulary", 99, 44)


def test_what_is_not_the_runs_own_overwrites_nothing(sweep: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(runs(sweep)[0], tmp_path / "copy"))
    shutil.rmtree(copied / "evaluation", ignore_errors=True)
    other_data = ("data=local", "data.train=test.jsonl", "data.test=train.jsonl")
    with inside(sweep.parent):
        evaluate(str(copied), "suite=preference", *other_data, *QUICK[:1])
        evaluate(str(copied), "suite=preference", f"reference.path={copied}/policy", *QUICK[:1])
    content = sorted(path.parent.name for path in (copied / "evaluation").rglob("preference.json"))
    assert content == ["other-data", "other-reference"], "reports read what lies in evaluation/ itself"


def test_other_pairs_than_the_runs_own(sweep: Path, tmp_path: Path) -> None:
    run = runs(sweep)[0]
    with inside(sweep.parent):
        evaluate(
            str(run),
            "suite=preference",
            "data=local",
            "data.train=test.jsonl",
            "data.test=train.jsonl",
            "data.max_test_pairs=15",
            f"output={tmp_path}",
            *QUICK[:1],
        )
    content = json.loads((tmp_path / "evaluation" / "preference.json").read_text())
    assert content["examples"] == 15
    (note,) = content["notes"]
    names(note, "pairs", "local", "train.jsonl")
    assert content["determined_by"]["data"] == "local: train.jsonl"


def test_half_precision_is_the_same_within_its_digits(sweep: Path, tmp_path: Path) -> None:
    run = runs(sweep)[0]
    with inside(sweep.parent):
        evaluate(str(run), "suite=preference", "precision=bf16-mixed", f"output={tmp_path}", *QUICK[:1])
        evaluate(str(run), "suite=preference", "precision=64-true", f"output={tmp_path / 'exact'}", *QUICK[:1])
    rounded = json.loads((tmp_path / "evaluation" / "preference.json").read_text())
    exact = json.loads((tmp_path / "exact" / "evaluation" / "preference.json").read_text())
    assert rounded["determined_by"]["settings"]["precision"] == "bf16-mixed"
    assert value(rounded, "log_ratio_rejected") != value(exact, "log_ratio_rejected")
    assert value(rounded, "log_ratio_rejected") == pytest.approx(value(exact, "log_ratio_rejected"), rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ([], ["error: run:", "run=outputs/RUN", "model.path"]),
        (["run=x", "model.path=y", "data=hh"], ["model.path=y:", "run=x"]),
        (["model.path=y"], ["error: data:", "model.path", "pairs"]),
        (["x", "checkpoint=-1"], ["checkpoint=-1:", "final, last", ">= 0"]),
        (["x", "checkpoint=step-"], ["checkpoint=step-:", "final, last", ">= 0"]),
        (["x", "preference.bins=0"], ["preference.bins=0:", "> 0"]),
        (["x", "oracle.prompts=8"], ["oracle.prompts:"]),
        (["x", "suite=preferense"], ["suite=preferense:", "did you mean preference?"]),
        (["x", "suite=preference,oracle"], ["suite=preference,oracle:", "'suite=[...]'"]),
        (["x", "device=tpu"], ["device=tpu:", "auto, cpu, cuda"]),
    ],
)
def test_a_mistake_is_answered(
    arguments: list[str], facts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside(tmp_path):
        evaluate(*arguments, fails=2)
        assert list(tmp_path.iterdir()) == []
    names(capsys.readouterr().err, *facts)


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inside(tmp_path):
        evaluate("run=nowhere", fails=2)
        names(capsys.readouterr().err, "error: run=nowhere:")
        evaluate(f"run={tmp_path}", fails=2)
    names(capsys.readouterr().err, f"error: run={tmp_path}:")


def test_results_of_several_runs_do_not_go_into_one_folder(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inside(sweep.parent):
        evaluate("sweep", "output=x", fails=1)
    names(capsys.readouterr().err, "output=x:", "run=sweep", "4 runs")
