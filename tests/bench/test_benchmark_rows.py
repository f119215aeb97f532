"""Ratios, medians, agreement and the table, from answers written by hand."""

from __future__ import annotations

from typing import ClassVar

import pytest

from caldpo.bench.benchmark_report import HEADERS, agreement_lines, cells, first_run, markdown
from caldpo.bench.benchmark_rows import Difference, TimedWork, compare, disagreements, make_rows
from caldpo.bench.worker_job import Answer, digest
from tests.helpers.messages import names

WORK = TimedWork(pairs=40, response_tokens=8000, flops=10**9, run_pairs=50)
SAME = digest([([1], [2], [3])])


def answer(seconds: float = 1.0, peak: int = 0, once: float | None = None, **steps: list) -> Answer:
    steps = {"losses": [0.5, 0.25], "grad_norms": [2.0, 4.0], "step_digests": [SAME, SAME]} | steps
    return Answer(**steps, seconds=seconds, reference_seconds=once, memory={"peak": peak}, options="", versions={})


class TestRows:
    answers: ClassVar = {
        "trl": [answer(10.0, 800), answer(20.0, 1000), answer(12.0, 900)],
        "caldpo": [answer(2.0, 100, once=5.0), answer(3.0, 300, once=15.0), answer(2.5, 200, once=10.0)],
        "trl_best": [],
    }
    rows = make_rows(answers, "trl", {}, WORK, matmul_flops=2e9, estimated={})

    def test_ratios_are_of_medians(self) -> None:
        baseline, caldpo_row, _ = self.rows
        assert (baseline.speed, baseline.memory) == (1.0, 1.0)
        assert caldpo_row.speed == pytest.approx(12 / 2.5)
        assert caldpo_row.memory == pytest.approx(900 / 200)

    def test_rates(self) -> None:
        caldpo_row = self.rows[1]
        assert caldpo_row.pairs_per_second == pytest.approx((40 / 2.5, 40 / 3, 40 / 2))
        assert caldpo_row.response_tokens_per_second == pytest.approx(8000 / 2.5)
        assert caldpo_row.peak_share == pytest.approx(10**9 / 2.5 / 2e9)
        assert caldpo_row.reference_seconds_per_pair == pytest.approx(10 / 50)
        assert self.rows[0].reference_seconds_per_pair is None

    def test_the_first_run_has_the_pass_in_it(self) -> None:
        """One epoch's seconds a pair: 2.5 / 40 of steps and 10 / 50 of the pass."""
        baseline, caldpo_row, too_large = self.rows
        assert caldpo_row.first_run_pairs_per_second == pytest.approx(1 / (2.5 / 40 + 10 / 50))
        assert baseline.first_run_pairs_per_second == pytest.approx(40 / 12)
        assert too_large.first_run_pairs_per_second is None
        names(first_run(caldpo_row, baseline), "first run", "3.81 pairs/s", "1.14 times TRL default")
        names(first_run(caldpo_row, None), "first run", "3.81 pairs/s")
        assert "times" not in first_run(caldpo_row, None)

    def test_without_trl_there_are_no_ratios(self) -> None:
        (row,) = make_rows({"caldpo": self.answers["caldpo"]}, None, {}, WORK, 2e9, {})
        assert (row.speed, row.memory) == (None, None)
        assert cells(row)[3] == "-"

    def test_table(self) -> None:
        text = markdown(self.rows, {"device": "abacus"})
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
        assert lines[0] == list(HEADERS)
        assert lines[3][:4] == ["caldpo default", "16 (13.3-20)", "3200", "4.80"]
        assert lines[3][5:] == ["4.50", "0.20", "-"]
        assert lines[4] == ["TRL, fastest", "out of memory", *["-"] * 6]
        names(text, "ms per pair", "caldpo default 200", "device: abacus")

    def test_estimates_stand_beside_what_was_measured(self) -> None:
        """180 MiB measured of 200 estimated are nine tenths; what did not fit has an estimate all the same."""
        rows = make_rows(
            {"caldpo": [answer(peak=180 * 2**20)], "caldpo_frozen": [], "trl": [answer(peak=2**20)]},
            None,
            {},
            WORK,
            2e9,
            {"caldpo": 200 * 2**20, "caldpo_frozen": 900 * 2**20, "trl": None},
        )
        assert [cells(row)[-1] for row in rows] == ["200 (0.90 of it)", "900", "-"]


class TestAgreement:
    def test_equal_answers(self) -> None:
        assert compare(answer(), answer(), (1e-9, 1e-9)) == Difference(0, 0, 0, None)

    def test_the_first_step_is_held_more_closely(self) -> None:
        later = answer(grad_norms=[2.0, 4.002])
        assert compare(answer(), later, (1e-5, 1e-3)).problem is None
        first = answer(grad_norms=[2.001, 4.0])
        result = compare(answer(), first, (1e-5, 1e-3))
        assert result.first_grad_norm == pytest.approx(5e-4)
        names(result.problem, "gradient norm", "step 1", 0.0005)

    @pytest.mark.parametrize(
        ("other", "facts"),
        [
            (answer(losses=[0.5, 0.26]), ("loss", "step 2", 0.04)),
            (answer(losses=[0.5, float("nan")]), ("loss", "step 2")),
            (answer(grad_norms=[2.0, float("nan")]), ("gradient norm", "step 2")),
            (answer(losses=[0.5]), ("steps", [1, 2])),
            (answer(step_digests=[SAME, digest([])]), ("token ids",)),
        ],
    )
    def test_disagreement_is_named(self, other: Answer, facts: tuple[object, ...]) -> None:
        result = compare(answer(), other, (1e-5, 1e-3))
        (line,) = disagreements({"caldpo": result, "trl_best": Difference(0, 0, 0, None)})
        names(line, "caldpo", *facts)

    def test_lines_for_people(self) -> None:
        difference = Difference(1e-6, 2e-7, 3e-4, None)
        rows = make_rows({"caldpo": [answer()]}, None, {"caldpo": difference}, WORK, 1e9, {})
        (line,) = agreement_lines(rows)
        names(line, "caldpo default", "loss 1.0e-06", "gradient norm 2.0e-07", "3.0e-04")


def test_a_digest_is_of_the_ids_and_not_of_their_order_in_the_step() -> None:
    one, two = ([1, 2], [3], [4]), ([5], [6, 7], [8])
    assert digest([one, two]) == digest([two, one])
    assert digest([one, two]) != digest([([1], [2, 3], [4]), two])
    assert digest([one, two]) != digest([(one[0], one[2], one[1]), two])
