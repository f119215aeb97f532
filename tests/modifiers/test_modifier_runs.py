"""Runs with modifiers: what is printed and recorded, resumed to the bit, divided in any way, refused before weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.evaluation.runs import inside, write_data
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.resume.runs import outcome
from tests.resume.runs import train as in_processes
from tests.resume.stopped import RUN, stopped

ALL = (
    "loss=dpo",
    "modifier=[sampo,tr_dpo,adaptive_beta,gap_filter,wpo,focal,nll]",
    "modifier.tr_dpo.every=3",
    "modifier.wpo.alignment=sampled",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modified")
    write_data(folder)
    return folder


def test_a_stopped_run_with_all_of_them_is_the_run_that_was_not(home: Path) -> None:
    """Draws, averages and the moved reference; the formula is printed and recorded, the weights are logged."""
    with inside(home):
        train(*RUN, *ALL, "hydra.run.dir=whole")
        stopped(*RUN, *ALL, "hydra.run.dir=half")
        train("resume=half")
    assert outcome(home / "half") == outcome(home / "whole")
    formula = json.loads((home / "whole" / "summary.json").read_text())["formula"]
    names(formula, "logsigmoid", "0.05", "every 3 steps")
    with (home / "whole" / "metrics.csv").open(newline="") as file:
        columns = set(next(csv.reader(file)))
    assert {"terms/nll", "diagnostics/wpo_weight", "diagnostics/adaptive_beta", "val/terms/nll"} <= columns


def test_the_moved_reference_is_not_the_one_of_a_plain_run(home: Path) -> None:
    """Held-out log-ratios are of the start, training ones of the moved reference: 0 in the step after a replacement."""
    with inside(home):
        train(
            *(*RUN, "loss=dpo", "modifier=tr_dpo", "modifier.tr_dpo.mode=replace", "modifier.tr_dpo.every=2"),
            "hydra.run.dir=replaced",
        )
    with (home / "replaced" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ratios = {int(row["step"]): float(row["log_ratios/chosen"]) for row in rows if row["log_ratios/chosen"]}
    held_out = {int(row["step"]): float(row["val/log_ratios/chosen"]) for row in rows if row["val/log_ratios/chosen"]}
    for step, ratio in ratios.items():
        assert (abs(ratio) < 1e-4) == (step % 2 == 0), (step, ratio)
    assert abs(held_out[0]) < 1e-4 < abs(held_out[4])


@pytest.mark.parametrize("modifier", ["dr_dpo", "[adaptive_beta,gap_filter]"])
def test_a_step_is_the_same_however_it_is_divided(home: Path, modifier: str) -> None:
    """Eight pairs at once, or twice four: the same weights up to rounding."""
    policies = []
    for micro, accumulate in ((8, 1), (4, 2)):
        with inside(home):
            folder = f"divided-{modifier}-{micro}".replace("[", "").replace("]", "").replace(",", "-")
            train(
                *(*RUN, "loss=dpo", f"modifier={modifier}", f"data.micro_batch_size={micro}"),
                *(f"trainer.accumulate_grad_batches={accumulate}", f"hydra.run.dir={folder}"),
            )
            policies.append(load_file(next((home / folder / "policy").glob("*.safetensors"))))
    for name, value in policies[0].items():
        torch.testing.assert_close(value, policies[1][name], rtol=2e-3, atol=2e-4)


REFUSED = [
    (("modifier=[wpo,nil]",), ("nil", "nll")),
    (("modifier=wpo", "modifier.wpo.alignmnt=none"), ("modifier.wpo.alignmnt", "alignment")),
    (("modifier=nll", "modifier.nll.weight=-1"), ("modifier.nll.weight", ">= 0")),
    (("modifier=ld_dpo", "reference=precomputed"), ("precomputed", "ld_dpo", "reference=frozen")),
    (("modifier=tr_dpo", "reference=precomputed"), ("precomputed", "tr_dpo", "reference=frozen")),
    (("modifier=tr_dpo", "adapter=lora"), ("adapter", "tr_dpo", "adapter=none")),
    (("modifier=score_margin", "loss=cal_dpo"), ("score_margin", "CalDPO")),
    (("modifier=[ld_dpo,sampo]",), ("ld_dpo", "sampo")),
]


@pytest.mark.parametrize(("arguments", "facts"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_what_is_impossible_is_refused_by_name(
    home: Path,
    arguments: tuple[str, ...],
    facts: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before data or weights are read."""
    monkeypatch.setattr("caldpo.training_run.prepare_data", lambda *_: pytest.fail("data was read"))
    with inside(home), pytest.raises(SystemExit):
        train(*RUN, "loss=dpo", *arguments, "hydra.run.dir=refused", fails=None)
    names(capsys.readouterr().err, *facts)


@pytest.mark.slow
def test_two_ranks_train_as_one(home: Path) -> None:
    """The pairs of a step, its draws and the moved reference are the same, over however many ranks."""
    one = ("data.micro_batch_size=4", "hydra.run.dir=one")
    two = ("data.micro_batch_size=2", "trainer.devices=2", "trainer.strategy=ddp", "hydra.run.dir=two")
    for ranks, arguments in ((1, one), (2, two)):
        ended = in_processes(home, *RUN, *ALL, *arguments, ranks=ranks)
        assert set(ended.codes) == {0}, ended.said
    policies = [load_file(next((home / name / "policy").glob("*.safetensors"))) for name in ("one", "two")]
    for name, value in policies[0].items():
        torch.testing.assert_close(value, policies[1][name], rtol=2e-3, atol=2e-4)
