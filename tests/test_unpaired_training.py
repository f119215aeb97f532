"""Training on rows with one response: a sum over responses is the same, in pairs or taken apart."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.logprobs import LogprobEngine
from caldpo.logprobs.packed_attention import use_packed_attention
from caldpo.types import assembler
from tests.helpers.command import RANDOM_MODEL, train
from tests.helpers.pointwise import Squares
from tests.helpers.tiny import tiny_model, tiny_pairs
from tests.helpers.tiny_trainer import Pairs, fit, make_module

EOS = 2
PAIR_METRICS = ("rewards/margins", "rewards/accuracies")


def apart(pairs: list[TokenizedPair]) -> list[TokenizedPair]:
    """Each response as a row of its own."""
    rows = []
    for pair in pairs:
        good = replace(pair, rejected_ids=[EOS], score_rejected=None, label=True)
        bad = replace(pair, chosen_ids=[EOS], score_chosen=None, label=False)
        rows += [replace(row, index=2 * pair.index + place) for place, row in enumerate((good, bad))]
    return rows


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_loss_and_gradient_are_those_of_the_pairs_but_for_the_mean(layout: Any) -> None:
    """N pairs have a mean over N, their 2N rows one over 2N: the half of it."""
    pairs = tiny_pairs(5)
    found = []
    for rows in (pairs, apart(pairs)):
        policy = tiny_model(dtype=torch.float64)
        if layout == "packed":
            use_packed_attention(policy)
        batch = collate(rows, 0, layout=layout)
        chosen, rejected = LogprobEngine(policy)(batch)
        reference = 1.1 * chosen.detach(), 0.8 * rejected.detach()  # so that no log-ratio is 0
        logps = assembler(batch, reference)(chosen, rejected, slice(None))
        loss = Squares()(logps).loss.sum() / batch.pairs_in_step(1)
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])))
    (paired, paired_gradient), (single, single_gradient) = found
    assert single == pytest.approx(paired / 2, rel=1e-12)
    # packed pairs share their prompt's activations, whose gradients are summed with rounding of their own
    rounding = 1e-12 if layout == "padded" else 1e-6
    assert (single_gradient - paired_gradient / 2).norm() < rounding * paired_gradient.norm()


def test_an_absent_response_has_no_gradient() -> None:
    """Whatever tokens stand in its place: the loss does not move with their log-prob."""
    batch = collate(apart(tiny_pairs(3)), 0)
    logps = make_module(Squares()).pair_logps(batch, with_reference=True)
    sides = [side.detach().requires_grad_() for side in (logps.policy_chosen, logps.policy_rejected)]
    Squares()(replace(logps, policy_chosen=sides[0], policy_rejected=sides[1])).loss.sum().backward()
    present = torch.stack([batch.chosen_present, batch.rejected_present])  # type: ignore[list-item]
    gradients = torch.stack([side.grad for side in sides])  # type: ignore[misc]
    assert (gradients[present == 0] == 0).all()
    assert (gradients[present == 1] != 0).all()


def test_a_run_on_pairs_and_one_on_their_rows_are_the_same(tmp_path: Path) -> None:
    """One step of all pairs. SGD's scale aside, Adam's update does not depend on the factor of the mean."""
    pairs, held_out = tiny_pairs(6), tiny_pairs(4, seed=1)
    logged = {}
    for name, rows in (("pairs", pairs), ("rows", apart(pairs))):
        module = make_module(Squares(), lr=1e-3)
        fit(module, Pairs(rows, held_out, micro=len(rows)), tmp_path / name, max_steps=3, val_check_interval=1)
        logged[name] = rows_of(tmp_path / name)
        assert len(logged[name]) == 6
    for paired, single in zip(logged["pairs"], logged["rows"], strict=True):
        for metric, value in single.items():
            if metric == "tokens_per_second" or not value or not paired[metric]:
                continue
            factor = 2 if metric in ("loss", "grad_norm", "terms/chosen", "terms/rejected") else 1
            assert factor * float(value) == pytest.approx(float(paired[metric]), rel=2e-3, abs=2e-4), metric
        if single["loss"]:
            assert all(not single.get(name) and paired[name] for name in PAIR_METRICS), "no row has both responses"
        else:
            assert all(single[f"val/{name}"] for name in PAIR_METRICS)


def test_metrics_do_not_depend_on_micro_batches(tmp_path: Path) -> None:
    """Rows whose labels are unevenly spread: means are over responses that are there, whatever the cut."""
    rows = [row for i, row in enumerate(apart(tiny_pairs(6))) if i not in (1, 3, 5, 7)]
    rows = [replace(row, index=i) for i, row in enumerate(rows)]
    logged = []
    for micro, accumulate in ((8, 1), (2, 4), (1, 8)):
        folder = tmp_path / str(micro)
        fit(make_module(Squares()), Pairs(rows, rows, micro), folder, max_steps=1, accumulate_grad_batches=accumulate)
        logged.append(rows_of(folder))
    for table in logged[1:]:
        for row, same in zip(table, logged[0], strict=True):
            assert {k for k, v in row.items() if v} == {k for k, v in same.items() if v}
            for name, value in row.items():
                if value and name != "tokens_per_second":
                    assert float(value) == pytest.approx(float(same[name]), rel=1e-4, abs=1e-5), name


def test_rows_that_are_all_desirable(tmp_path: Path) -> None:
    """No rejected response: nothing is logged of any, and nothing is not a number."""
    rows = [replace(row, index=i) for i, row in enumerate(apart(tiny_pairs(4))[::2])]
    module = make_module(Squares())
    fit(module, Pairs(rows, rows, 4), tmp_path, max_steps=2)
    for row in rows_of(tmp_path):
        values = {name: float(value) for name, value in row.items() if value}
        assert all(map(math.isfinite, values.values()))
        assert not any("rejected" in name and "terms" not in name for name in values)
    assert module.latest["terms/rejected"] == 0
    assert "log_ratios/chosen" in module.latest


def write(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_command_on_unpaired_rows_and_on_pairs_taken_apart(folder: Path) -> None:
    """From files to summary.json: the same rows written out and taken apart by the key train the same policy."""
    Path("conf/loss").mkdir(parents=True)
    Path("conf/loss/squares.yaml").write_text("_target_: tests.helpers.pointwise.Squares\n")
    found = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    write("held_out.jsonl", found[:6])
    write("paired.jsonl", found[6:])
    write(
        "single.jsonl",
        [
            {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            for row in found[6:]
            for side in ("chosen", "rejected")
        ],
    )
    common = [
        *(key for key in RANDOM_MODEL if not key.startswith("data.train")),
        "--config-dir=conf",
        "loss=squares",
        "data.test=held_out.jsonl",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
        "trainer.progress_bar=false",
        "callbacks.samples.prompts=0",
        "logger=csv",
    ]
    train(*common, "data.train=single.jsonl", "hydra.run.dir=single")
    train(*common, "data.train=paired.jsonl", "data.unpair=true", "hydra.run.dir=apart")
    tables = []
    for run in ("single", "apart"):
        rows = rows_of(Path(run))
        tables.append([{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows])
    assert tables[0] == tables[1], "to the last digit"
    summary = json.loads(Path("single/summary.json").read_text())
    assert summary["status"] == "finished"
    assert (summary["data"]["train"]["desirable"], summary["data"]["train"]["undesirable"]) == (18, 18)
    assert "val/rewards/accuracies" in summary["metrics"]
    assert yaml.safe_load(Path("apart/config.yaml").read_text())["data"]["unpair"] is True


def test_the_command_refuses_them_for_a_loss_that_compares(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write("single.jsonl", [{"prompt": f"w{i}", "completion": " w2", "label": True} for i in range(10, 30)])
    keys = (key for key in RANDOM_MODEL if not key.startswith("data.train"))
    train(*keys, "data.train=single.jsonl", "loss=dpo", "hydra.run.dir=run", fails=1)
    text = "".join(capfd.readouterr())
    assert "loss=dpo" in text
    assert "single.jsonl:1" in text
