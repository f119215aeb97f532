"""The leaderboards as they are written down here, held against the installed harness; plans, figures and errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from caldpo.evaluation.lm_eval import installation as installations
from caldpo.evaluation.lm_eval.installation import Installation, find_installation
from caldpo.evaluation.lm_eval.leaderboards import BOARDS, V1, V2, above_chance
from caldpo.evaluation.lm_eval.read_results import read_task, wrong_shots
from caldpo.evaluation.lm_eval.task_index import names as known_tasks
from caldpo.evaluation.lm_eval.task_index import require_names, task_manager
from caldpo.evaluation.lm_eval.task_plan import PlannedTask, plan_tasks, runnable_tasks
from caldpo.evaluation.suite_base import Measure
from caldpo.evaluation.suites.leaderboard import Leaderboard, averages
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_tokenizer

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def shipped() -> Path:
    return find_installation(None).tasks


class _Plain(yaml.SafeLoader):
    """Reads LM Eval's yaml without running what it names."""


_Plain.add_multi_constructor("!", lambda loader, tag, node: None)


def _read(path: Path) -> dict[str, Any]:
    config = yaml.load(path.read_text(), _Plain)
    include = config.get("include")
    return (_read(path.parent / include) if include else {}) | config


# -- the tables


def test_version_2_is_lm_evals_own_group(shipped: Path) -> None:
    group = _read(known_tasks(shipped)["leaderboard"][0])
    assert [row.task for row in BOARDS[V2]] == group["task"]


@pytest.mark.parametrize("row", BOARDS[V2], ids=lambda row: row.task)
def test_shots_of_version_2_are_in_lm_evals_tasks(row: Any, shipped: Path) -> None:
    config = _read(known_tasks(shipped)[row.task][0])
    members = [_read(known_tasks(shipped)[name][0]) for name in config["task"]] if "group" in config else [config]
    assert {member.get("num_fewshot", 0) for member in members} == {row.shots}  # without a word: none
    for metric in row.metrics:
        assert all(metric in [m["metric"] for m in member["metric_list"]] for member in members)
    if row.chance is None:
        assert all(len(member["doc_to_choice"]) >= 2 for member in members)
    if isinstance(row.chance, dict):
        assert set(row.chance) == set(config["task"])


def test_shots_of_version_1_are_lm_evals_group_s(shipped: Path) -> None:
    group = {member["task"]: member["num_fewshot"] for member in _read(known_tasks(shipped)["openllm"][0])["task"]}
    assert {row.task.removesuffix("_mc2"): row.shots for row in BOARDS[V1]} == group


@pytest.mark.parametrize("row", BOARDS[V1], ids=lambda row: row.task)
def test_metrics_of_version_1_are_in_lm_evals_tasks(row: Any, shipped: Path) -> None:
    config = _read(known_tasks(shipped)[row.task][0])
    listed = config["aggregate_metric_list"] if "group" in config else config["metric_list"]
    metric, _, of = row.metrics[0].partition(",")
    assert metric in [m["metric"] for m in listed]
    assert not of or of in [f["name"] for f in config["filter_list"]]


# -- names


@pytest.mark.parametrize("family", ["arc", "leaderboard", "mmlu/default", "kbl", "acpbench"])
def test_names_are_lm_evals(family: str, shipped: Path) -> None:
    """Found by their lines, they are what LM Eval finds by reading everything, tags through includes as well."""
    from lm_eval.tasks._index import Kind, TaskIndex

    index = TaskIndex.build([shipped / family])
    ours = known_tasks(shipped / family)
    assert set(ours) == set(index)
    for name, entry in index.items():
        if entry.kind is Kind.TAG:
            assert set(ours[name]) == {index[task].yaml_path for task in entry.tags}
        else:
            assert ours[name] == (entry.yaml_path,)


def test_index_has_what_a_group_consists_of(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\ndataset_path: json\n")
    known = set(task_manager(["openllm", "mine"], tmp_path, shipped).all_tasks)
    assert known >= {"openllm", "mine", "arc_challenge", "mmlu_anatomy", "mmlu_stem_tasks", "winogrande", "gsm8k"}
    assert "leaderboard_bbh" not in known


def test_misspelt_known_tasks(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("task: my_own_questions\n")
    with refused("did you mean hellaswag?", key="leaderboard.tasks", value="hellaswagg"):
        require_names(["hellaswagg"], None, shipped, also=())
    with refused("did you mean my_own_questions?", key="leaderboard.tasks", value="my_own_question"):
        require_names(["my_own_question"], tmp_path, shipped, also=())
    with refused("did you mean leaderboard_v2?", key="leaderboard.tasks", value="leaderboard_v_2"):
        Leaderboard(tasks=["leaderboard_v_2"]).check()
    require_names(["my_own_questions", "mmlu_stem_tasks"], tmp_path, shipped, also=())


# -- plans


def test_boards_keep_their_shots_and_tasks_come_once() -> None:
    plan = {task.name: task for task in plan_tasks(["gsm8k", V1, V2, "piqa", "held_out_pairs"], 3)}
    assert len(plan) == 14
    assert (plan["arc_challenge"].shots, plan["gsm8k"].shots, plan["truthfulqa_mc2"].shots) == (25, 5, 0)
    assert plan["gsm8k"].board == V1
    assert plan["leaderboard_bbh"].shots is None  # LM Eval's own definition has them
    assert (plan["piqa"].shots, plan["held_out_pairs"].shots) == (3, None)


def _without(*packages: str, antlr: str = "4.11.0") -> Installation:
    versions = {"math-verify": "0.8.0", "sympy": "1.14.0", "antlr4-python3-runtime": antlr, "langdetect": "1.0.9"}
    versions |= {"immutabledict": "4.2.1", "nltk": "3.9.1", "setuptools": "80.9.0", "vllm": "0.10.0"}
    return Installation(None, Path(), {name: None if name in packages else v for name, v in versions.items()})


def test_missing_packages() -> None:
    lacking = _without("nltk", antlr="4.9.3")
    runnable, left_out = runnable_tasks(plan_tasks([V2], None), lacking)
    assert [task.name for task in runnable] == [f"leaderboard_{name}" for name in ("mmlu_pro", "bbh", "gpqa", "musr")]
    assert left_out.keys() == {"leaderboard_math_hard", "leaderboard_ifeval"}
    names(left_out["leaderboard_math_hard"], "antlr4-python3-runtime==4.11")
    names(left_out["leaderboard_ifeval"], "nltk>=3.9.1")
    named: dict[str, str] = {"key": "leaderboard.tasks", "value": "leaderboard_ifeval", "remedy": "leaderboard.python="}
    with refused("nltk>=3.9.1", **named):
        runnable_tasks(plan_tasks(["leaderboard_ifeval"], None), lacking)
    assert runnable_tasks(plan_tasks([V2], None), _without())[1] == {}
    only = [task for task in plan_tasks([V2], None) if task.name == "leaderboard_ifeval"]
    with refused("leaderboard_ifeval", "nltk>=3.9.1"):
        runnable_tasks(only, lacking)


def test_a_harness_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installations.environment_probe, "probe", lambda *_: {"folder": None, "versions": {}})
    with refused(key="suite", value="leaderboard", remedy="pip install 'caldpo[eval]'"):
        Leaderboard(tasks=[V2]).check()
    with refused(key="leaderboard.python", value=tmp_path / "nowhere"):
        Leaderboard(tasks=[V2], python=str(tmp_path / "nowhere")).check()
    empty = tmp_path / "python"
    empty.write_text('#!/bin/sh\necho \'{"folder": null, "versions": {"lm_eval": null}}\'\n')
    empty.chmod(0o755)
    with refused("lm_eval", key="leaderboard.python", value=empty, remedy=f"{empty} -m pip install"):
        Leaderboard(tasks=[V2], python=str(empty)).check()


def test_settings_that_cannot_be() -> None:
    with refused(key="leaderboard.tasks", remedy=V2):
        Leaderboard(tasks=[]).check()
    with refused(key="leaderboard.include_path", value="/no/where"):
        Leaderboard(tasks=[V2], include_path="/no/where").check()
    with refused("> 0", key="limit", value=0):
        Leaderboard(tasks=[V2], limit=0)


def test_vllm_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caldpo.evaluation.suites.leaderboard.find_installation", lambda python: _without("vllm"))
    with refused(key="leaderboard.backend", value="vllm"):
        Leaderboard(tasks=[V2], backend="vllm").check()


def test_template_that_is_not_there() -> None:
    class EvaluatedPolicy:
        tokenizer = tiny_tokenizer()

    with refused("tokenizer", "chat template", key="leaderboard.apply_chat_template", value="true"):
        Leaderboard(tasks=[V2], apply_chat_template=True).check_policy(EvaluatedPolicy())  # type: ignore[arg-type]


# -- figures


def test_normalisation_is_the_documentation_s() -> None:
    """The examples of https://huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization."""
    assert above_chance(0.6, 0.25) == pytest.approx(46.67, abs=0.01)
    assert above_chance(0.2, 0.25) == 0
    task = _wanted("leaderboard_musr")
    scores = {"murder_mysteries": 0.7, "object_placements": 0.4, "team_allocation": 0.6}
    results = _results(task, {f"leaderboard_musr_{n}": {"acc_norm,none": v} for n, v in scores.items()}, 0)
    results["groups"] = {"leaderboard_musr": {"acc_norm,none": 0.56, "acc_norm_stderr,none": 0.1}}
    measures, details = read_task(task, results)
    assert details["normalised"] == pytest.approx(35.0, abs=0.05)
    assert measures["leaderboard_musr"].value == 0.56
    assert measures["leaderboard_musr"].low == pytest.approx(0.56 - 0.196)
    assert measures["leaderboard_musr"].n == 30


def test_chance_of_bbh_is_of_each_task_s_choices() -> None:
    task = _wanted("leaderboard_bbh")
    leaves = {"leaderboard_bbh_navigate": {"acc_norm,none": 0.75}, "leaderboard_bbh_ruin_names": {"acc_norm,none": 0.1}}
    results = _results(task, leaves, 3)
    results["groups"] = {"leaderboard_bbh": {"acc_norm,none": 0.4}}
    results["configs"] = {name: {"doc_to_choice": ["x"] * n} for name, n in zip(leaves, (2, 6), strict=True)}
    _, details = read_task(task, results)
    assert details["normalised"] == pytest.approx((50 + 0) / 2)


def test_ifeval_is_the_mean_of_two() -> None:
    task = _wanted("leaderboard_ifeval")
    scores = {
        "prompt_level_strict_acc,none": 0.3,
        "prompt_level_strict_acc_stderr,none": 0.02,
        "inst_level_strict_acc,none": 0.5,
        "inst_level_strict_acc_stderr,none": "N/A",
        "prompt_level_loose_acc,none": 0.9,
    }
    measures, details = read_task(replace(task, templated=True), _results(task, {task.name: scores}, 0))
    measure = measures[task.name]
    assert (measure.value, measure.low) == (pytest.approx(0.4), None)
    assert measure.unit == "prompt_level_strict_acc and inst_level_strict_acc"
    names(measure.meaning, "0-shot", "chat template")
    assert details["normalised"] == pytest.approx(40)


def test_mmlu_is_the_mean_over_subjects() -> None:
    """Weighted by size it would be what LM Eval says of the group."""
    task = _wanted("mmlu")
    subjects = {
        "mmlu_anatomy": {"acc,none": 0.2, "acc_stderr,none": 0.03},
        "mmlu_law": {"acc,none": 0.6, "acc_stderr,none": 0.04},
    }
    results = _results(task, subjects, 5)
    results["groups"] = {"mmlu": {"acc,none": 0.55, "acc_stderr,none": 0.03}}
    measures, details = read_task(task, results)
    assert list(measures) == ["mmlu"]
    assert measures["mmlu"].value == pytest.approx(0.4)
    assert measures["mmlu"].high == pytest.approx(0.4 + 1.96 * 0.025)
    assert details["metrics"]["mmlu"]["acc,none"] == 0.55
    assert "normalised" not in details


def test_gsm8k_is_read_strictly_and_others_by_what_they_report() -> None:
    scores = {"exact_match,flexible-extract": 0.4, "exact_match,strict-match": 0.3}
    for task, expected in ((_wanted("gsm8k"), 0.3), (PlannedTask("other", None), 0.4)):
        measures, _ = read_task(task, _results(task, {task.name: scores}, 5))
        assert measures[task.name].value == expected
    task = PlannedTask("mine", None)
    reported = {"acc,none": 0.2, "f1,none": 0.6, "acc_norm,none": 0.3, "alias": "mine"}
    measures, details = read_task(task, _results(task, {"mine": reported}, 0))
    assert measures["mine"].value == 0.3
    assert details["read"] == {"mine": "acc_norm,none"}


def test_a_tag_gives_a_measure_for_each_task() -> None:
    task = PlannedTask("two", None)
    results = _results(task, {"a": {"acc,none": 0.2}, "b": {"f1,none": 0.9}}, 0)
    assert {n: m.value for n, m in read_task(task, results)[0].items()} == {"a": 0.2, "b": 0.9}


def test_other_shots_than_the_leaderboard_s_are_seen() -> None:
    task = _wanted("arc_challenge")
    assert wrong_shots(task, _results(task, {"arc_challenge": {"acc_norm,none": 0.2}}, 25)) == set()
    assert wrong_shots(task, _results(task, {"arc_challenge": {"acc_norm,none": 0.2}}, 0)) == {0}
    alone = PlannedTask("arc_challenge", 0)
    assert wrong_shots(alone, _results(task, {"arc_challenge": {"acc_norm,none": 0.2}}, 0)) == set()


def test_averages_need_all_columns() -> None:
    plan = plan_tasks([V1, V2], None)
    measures = {t.name: Measure(value=0.1 * i, title="", unit="", meaning="") for i, t in enumerate(plan)}
    tasks = {t.name: {"normalised": 10.0 * i} for i, t in enumerate(plan)}
    columns = averages(plan, measures, tasks)
    places = {t.name: i for i, t in enumerate(plan)}
    assert columns[V2].value == pytest.approx(sum(10.0 * places[r.task] for r in BOARDS[V2]) / 6)
    assert columns[V1].value == pytest.approx(sum(10.0 * places[r.task] for r in BOARDS[V1]) / 6)
    del tasks["leaderboard_gpqa"]
    assert set(averages(plan, measures, tasks)) == {V1}


def _wanted(name: str) -> PlannedTask:
    return next(task for task in plan_tasks([V1, V2], None) if task.name == name)


def _results(task: PlannedTask, leaves: dict[str, dict[str, Any]], shots: int) -> dict[str, Any]:
    """What LM Eval reports of tasks with ten questions each."""
    return {
        "results": leaves,
        "n-shot": dict.fromkeys(leaves, shots),
        "n-samples": {name: {"original": 10, "effective": 10} for name in leaves},
        "versions": {},
        "configs": {name: {} for name in leaves},
        "higher_is_better": {},
    }
