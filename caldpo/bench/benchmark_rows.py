"""From the answers of all rounds to one row of figures for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from types import MappingProxyType

from caldpo.bench.loss_agreement import Difference
from caldpo.bench.worker_job import Answer


@dataclass(frozen=True)
class Work:
    """What the timed steps of every variant consist of.

    Args:
        pairs: of all timed steps.
        response_tokens: likewise.
        flops: operations that the mathematics needs for them.
        run_pairs: pairs of a run, warm-up included: those whose reference may be computed once.
    """

    pairs: int
    response_tokens: int
    flops: int
    run_pairs: int


@dataclass(frozen=True)
class Row:
    """Medians over the rounds; None where a variant ran out of memory.

    Args:
        name: of the variant.
        title: of the variant, for people.
        pairs_per_second: median, and the lowest and highest of the rounds.
        response_tokens_per_second: median.
        speed: times the yardstick's.
        peak_bytes: median of the peak memory.
        memory: times less than the yardstick's.
        peak_share: of the measured matmul peak, counting only what the mathematics needs.
        reference_seconds_per_pair: of computing the reference's log-probs once, apart from the steps.
        difference: from the yardstick's losses and gradient norms.
        estimated_bytes: of memory, by ``caldpo.estimate`` before the run; None where it does not say.
    """

    name: str
    title: str
    pairs_per_second: tuple[float, float, float] | None
    response_tokens_per_second: float | None
    speed: float | None
    peak_bytes: int | None
    memory: float | None
    peak_share: float | None
    reference_seconds_per_pair: float | None
    difference: Difference | None
    estimated_bytes: int | None = None

    @property
    def of_estimate(self) -> float | None:
        """Peak memory as a multiple of the estimate."""
        if self.peak_bytes is None or not self.estimated_bytes:
            return None
        return self.peak_bytes / self.estimated_bytes

    @property
    def first_run_pairs_per_second(self) -> float | None:
        """Over one epoch whose reference has still to be computed; None where a variant ran out of memory."""
        if self.pairs_per_second is None:
            return None
        return 1 / (1 / self.pairs_per_second[0] + (self.reference_seconds_per_pair or 0.0))


def make_rows(
    titles: Mapping[str, str],
    answers: Mapping[str, Sequence[Answer]],
    yardstick: str | None,
    differences: Mapping[str, Difference],
    work: Work,
    matmul_flops: float,
    estimated: Mapping[str, int | None] = MappingProxyType({}),
) -> list[Row]:
    """One row for each of ``titles``.

    Args:
        titles: of the variants, by name, in order.
        answers: one for each round; none for a variant that ran out of memory.
        yardstick: the variant that ratios refer to; None: nothing to compare with.
        differences: from the yardstick.
        work: of the timed steps.
        matmul_flops: operations per second that the device reaches.
        estimated: bytes by ``caldpo.estimate``, by variant.
    """
    base = answers[yardstick] if yardstick else []
    rows = [
        _row(name, title, answers[name], base, differences.get(name), work, matmul_flops)
        for name, title in titles.items()
    ]
    return [replace(row, estimated_bytes=estimated.get(row.name)) for row in rows]


def _row(
    name: str,
    title: str,
    rounds: Sequence[Answer],
    base: Sequence[Answer],
    difference: Difference | None,
    work: Work,
    matmul_flops: float,
) -> Row:
    if not rounds:
        return Row(name, title, None, None, None, None, None, None, None, difference)
    times = [answer.seconds for answer in rounds]
    seconds, peak = median(times), median(_peaks(rounds))
    passes = [answer.reference_seconds for answer in rounds if answer.reference_seconds is not None]
    return Row(
        name=name,
        title=title,
        pairs_per_second=(work.pairs / seconds, work.pairs / max(times), work.pairs / min(times)),
        response_tokens_per_second=work.response_tokens / seconds,
        speed=median(answer.seconds for answer in base) / seconds if base else None,
        peak_bytes=int(peak),
        memory=median(_peaks(base)) / peak if base else None,
        peak_share=work.flops / seconds / matmul_flops,
        reference_seconds_per_pair=median(passes) / work.run_pairs if passes else None,
        difference=difference,
    )


def _peaks(rounds: Sequence[Answer]) -> list[int]:
    return [answer.memory["peak"] for answer in rounds]
