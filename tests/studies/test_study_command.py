"""``python -m caldpo.study`` as a person uses it: stopped, gone on with, extended, and asked for what cannot be."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from caldpo import compose
from caldpo.config.conf_dir import conf_dir
from caldpo.study import main
from caldpo.utils.digests import json_digest
from tests.helpers.command import call
from tests.helpers.forked import start
from tests.helpers.messages import names
from tests.studies.commands import TINY, tables


def study(*overrides: str, fails: int | None = None) -> None:
    replaced = {override.partition("=")[0] for override in overrides}
    call(main, [*(text for text in TINY if text.partition("=")[0] not in replaced), *overrides], fails)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ran without a stop."""
    folder = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(folder):
        study()
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(finished, tmp_path / "copied")
    monkeypatch.chdir(tmp_path / "copied")
    return tmp_path / "copied"


def records(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "study" / "records").glob("*.json")}


def test_every_row_has_its_trials_and_fresh_seeds(finished: Path) -> None:
    found = tables(finished / "study" / "report")
    trials = found["trials"]
    assert trials.groupby("row").size().to_dict() == {"cal_dpo": 2, "dpo": 2}
    assert trials[trials["trial"] == 0]["setting"].str.contains("optim.lr=0.05").all(), "the yaml's own rate first"
    rates = trials["setting"].str.extract(r"optim.lr=(\S+)")[0]
    assert rates[trials["row"] == "dpo"].tolist() == rates[trials["row"] == "cal_dpo"].tolist(), "the same rates"
    for text in [*trials["chosen_by"].dropna()]:
        assert set(text.split()) <= {"practitioner", "truth"}
    runs = found["runs"]
    assert runs.groupby(["row", "choice"]).size().unique().tolist() == [2]
    assert set(runs["row"]) == {"dpo", "cal_dpo", "reference"}
    fresh = runs["overrides"].str.extract(r"(?:^| )seed=(\d+)")[0].astype(int)
    assert (fresh > 1000).all(), "no seed that anything was tuned on"
    assert (runs["status"] == "finished").all()


def test_means_and_differences_are_those_of_the_runs(finished: Path) -> None:
    found = tables(finished / "study" / "report")
    by_row = found["runs"].groupby(["row", "choice"])
    for _, cells in found["tabular"].iterrows():
        runs = by_row.get_group((cells["row"], cells["choice"]))
        for measure in ("reward", "kl", "accuracy", "slope", "kl_to_optimum"):
            assert cells[measure] == pytest.approx(runs[measure].mean(), abs=2e-6, nan_ok=True), measure
        if cells["row"] != "reference":
            assert cells["reward_low"] <= cells["reward"] <= cells["reward_high"]
    rewards = by_row["reward"].apply(list)
    differences = found["differences"]
    of_reward = differences[differences["measure"] == "reward"]
    assert set(of_reward["row"]) == {"cal_dpo", "reference"}
    for _, cells in of_reward.iterrows():
        paired = np.subtract(rewards[cells["row"], cells["choice"]], rewards["dpo", cells["choice"]])
        assert cells["difference"] == pytest.approx(paired.mean(), abs=2e-6)
        assert cells["sd"] == pytest.approx(paired.std(ddof=1), abs=2e-6)


def test_the_reference_stays_where_it_is(finished: Path) -> None:
    runs = tables(finished / "study" / "report")["runs"]
    reference = runs[runs["row"] == "reference"]
    assert reference["kl"].abs().max() < 1e-5
    assert reference["accuracy"].between(0.4, 0.6).all(), "ties count one half"


def test_a_run_measures_what_its_record_says(finished: Path) -> None:
    """What is summed up agrees with what is stored by prompt and pair, by formulas of its own."""
    for content in records(finished).values():
        record = json.loads(content)
        if "loss=dpo" not in record["overrides"]:
            continue
        pairs = {name: np.array(values) for name, values in record["by_pair"].items()}
        margins = 0.1 * (pairs["chosen_log_ratio"] - pairs["rejected_log_ratio"])
        if beta := [text for text in record["overrides"] if text.startswith("loss.beta=")]:
            margins *= float(beta[0].partition("=")[2]) / 0.1
        apart = np.abs(margins) > 1e-6  # what is stored is rounded, so that nearly equal ones look equal
        assert (pairs["accuracy"][apart] == (margins > 0)[apart]).all()
        assert pairs["brier"] == pytest.approx((1 - 1 / (1 + np.exp(-margins))) ** 2, abs=1e-5)
        prompts = {name: np.array(values) for name, values in record["by_prompt"].items()}
        # samples of the policy estimate what the table gives exactly; 8 prompts x 32 samples
        assert prompts["kl"].mean() == pytest.approx(record["scalars"]["exact_kl"], abs=0.1)
        assert prompts["reward"].mean() == pytest.approx(record["scalars"]["exact_reward"], abs=0.2)
        assert len(prompts["reward"]) == 8
        if record["frontier"]:
            assert [point["step"] for point in record["frontier"]] == [0, 2, 4]
            assert record["frontier"][0]["kl"] == 0


def test_nothing_is_left_of_the_runs_but_their_records(finished: Path) -> None:
    assert not list((finished / "study" / "runs").iterdir())
    assert not list((finished / "study" / "failures").iterdir())


@pytest.mark.slow
def test_killed_twice_and_gone_on_with_gives_the_same_tables(finished: Path, tmp_path: Path) -> None:
    for count in (1, 5):  # in the trials; in the runs with fresh seeds, or right before them
        process = start("caldpo.study", *TINY, cwd=tmp_path, session=True)
        deadline = time.monotonic() + 240
        while len(list(tmp_path.glob("study/records/*.json"))) < count:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.wait(30)
    begun = records(tmp_path)
    assert len(begun) < len(records(finished))
    last = start("caldpo.study", *TINY, cwd=tmp_path)
    assert last.wait(240) == 0, last.communicate()
    assert begun.items() <= records(tmp_path).items(), "what had ended was not run again"
    expected, found = tables(finished / "study" / "report"), tables(tmp_path / "study" / "report")
    assert expected.keys() == found.keys()
    for name, table in expected.items():
        pd.testing.assert_frame_equal(table, found[name])


def test_the_same_command_again_runs_nothing(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = records(copied)
    study()
    assert records(copied) == before
    assert "trials:" not in capsys.readouterr().err


def test_a_loss_joins_later_and_leaves_the_others_as_they_are(copied: Path) -> None:
    before, without = records(copied), tables(copied / "study" / "report")
    study("losses=[ipo]")
    after, with_ipo = records(copied), tables(copied / "study" / "report")
    assert before.items() <= after.items()
    added = [json.loads(content)["overrides"] for name, content in after.items() if name not in before]
    assert added
    assert all("loss=ipo" in overrides for overrides in added)
    assert set(with_ipo["tabular"]["row"]) == {"dpo", "cal_dpo", "ipo", "reference"}
    others = with_ipo["runs"][with_ipo["runs"]["row"] != "ipo"]
    merged = without["runs"].merge(others, how="inner")
    assert len(merged) == len(without["runs"])
    assert set(with_ipo["ranks"]["row"]) == {"dpo", "cal_dpo", "ipo"}, "losses alone are ranked"


def test_a_later_command_reports_rows_with_the_overrides_that_they_ran_with(copied: Path) -> None:
    study("losses=[ipo]", '+loss_overrides.ipo=["optim.weight_decay=0.1"]')
    study()
    runs = tables(copied / "study" / "report")["runs"]
    assert runs[runs["row"] == "ipo"]["overrides"].str.contains("optim.weight_decay=0.1").tolist() == [True] * 4


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("trials=3", ["trials", "2", "3"]),
        ("practitioner=[accuracy]", ["practitioner"]),
        ('+condition_overrides.tabular=["model=tabular"]', ["condition_overrides.tabular"]),
        ('++loss_overrides.dpo=["optim.weight_decay=0.1"]', ["loss_overrides.dpo"]),
    ],
)
def test_other_settings_are_refused_by_name(
    changed: str, named: list[str], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = records(copied)
    study(changed.removeprefix("+"), fails=2)
    names(capsys.readouterr().err, "output", *named)
    assert records(copied) == before


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["losses=[dpo,cal_dop]"], ["losses", "cal_dop", "cal_dpo"]),
        (["conditions=[review]"], ["conditions", "review", "reviews"]),
        (["beside=[nobody]"], ["beside", "nobody"]),
        (["practitioner=[reward]"], ["practitioner", "reward"]),
        (["lr_factors=[2,1]"], ["lr_factors"]),
        (["seeds=1"], ["seeds"]),
        (["seed=1002"], ["seed", "1002", "1001"]),
        (["conditions=[a]", '+condition_overrides.a=["model=tabular","seed=3"]'], ["condition_overrides.a", "seed=3"]),
        (["losses=[dpo,dpo]"], ["losses"]),
    ],
)
def test_what_does_not_exist_is_refused(
    overrides: list[str],
    named: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    study(*overrides, fails=2)
    names(capsys.readouterr().err, *named)
    assert not list(tmp_path.iterdir())


def test_data_without_a_known_reward_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    own = '+condition_overrides.own=["data=local","data.train=pairs.jsonl"]'
    study(own, "conditions=[own]", "seed_keys=[seed]", fails=1)
    names(capsys.readouterr().err, "conditions", "own", "reward")


def test_a_dry_run_counts_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study("dry_run=true", "trials=8", "seeds=5", "run_seconds={trial: 6.0, final: 12.0}", "workers=2")
    # 2 losses x 8 trials; at most 2 x 2 x 5 and 5 of the reference: (16 x 6 + 25 x 12) / 2 = 198 s
    names(capsys.readouterr().out, "16", "25", "3 minutes")
    assert not list(tmp_path.iterdir())


def test_runs_that_fail_are_named_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study("conditions=[broken]", "losses=[dpo]", fails=1)
    names(capsys.readouterr().err, "nowhere", "2 of 2")
    assert not records(tmp_path)
    assert len(list((tmp_path / "study" / "failures").iterdir())) == 2


def test_a_digest_that_reads_as_a_number_names_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = json_digest

    def numeric(value: Any) -> str:
        return f"8612e7{int(made(value), 16) % 10**10:010d}"  # "inf" as a number

    monkeypatch.setattr("caldpo.studies.study_plan.json_digest", numeric)
    study("losses=[dpo]", "beside=[]", "trials=1")
    assert len(records(tmp_path)) == 3
    assert all(name.startswith("8612e7") for name in records(tmp_path))


def test_values_that_are_not_finite_are_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study("conditions=[diverging]", "losses=[dpo]")
    found = tables(tmp_path / "study" / "report")
    assert found["trials"]["status"].tolist() == ["diverged"] * 2
    assert set(found["runs"]["row"]) == {"reference"}
    names((tmp_path / "study" / "report" / "index.md").read_text(), "`dpo` under diverging")


def test_every_condition_and_row_that_is_defined_composes() -> None:
    cfg = OmegaConf.load(conf_dir() / "study.yaml")
    run = [*cfg.run_overrides, *cfg.trial_overrides]
    for condition in cfg.condition_overrides.values():
        compose([*run, *condition, "loss=dpo"])
    for row in cfg.beside_overrides.values():
        if "rollouts" not in str(row.overrides) or (conf_dir() / "rollouts").is_dir():
            compose([*run, *cfg.condition_overrides.arithmetic, *row.overrides])


def test_best_of_n_picks_by_the_true_reward(copied: Path) -> None:
    before = tables(copied / "study" / "report")["tabular"].set_index(["row", "choice"])
    study("losses=[dpo]", "beside=[best_of_n]")
    row = tables(copied / "study" / "report")["tabular"].set_index(["row", "choice"]).loc["best_of_n", "truth"]
    assert row["kl"] == pytest.approx(math.log(16) - 15 / 16)
    of_log_probs = ["reverse_kl", "entropy", "accuracy", "chosen_log_ratio", "exact_reward", "kl_to_optimum"]
    assert row[of_log_probs].isna().all(), "those would be of the reference, which it samples"
    # the best of 16 draws of the table's reference, prompt by prompt: E[max] by the distribution of the maximum
    source = instantiate(compose(["model=tabular"]).data.source)
    rewards, log_probs = source.environment.rewards().numpy(), source.environment.reference().numpy()
    expected = []
    for values, probs in zip(rewards, np.exp(log_probs), strict=True):
        order = np.argsort(values)
        expected.append(values[order] @ np.diff(np.concatenate([[0.0], np.cumsum(probs[order])]) ** 16))
    assert row["reward"] == pytest.approx(np.mean(expected), abs=0.15)
    assert row["reward"] > before.loc[("reference", "truth"), "reward"] + 0.5


@pytest.mark.slow  # each worker imports for seconds
def test_workers_give_what_one_process_gives(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study("hydra/launcher=workers", "workers=2")
    expected: dict[str, Any] = tables(finished / "study" / "report")
    for name, table in tables(tmp_path / "study" / "report").items():
        pd.testing.assert_frame_equal(table, expected[name])
