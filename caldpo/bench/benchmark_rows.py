"""Figures of each variant: medians over the rounds, ratios to the baseline, agreement of losses and gradient norms.

The baseline is the first variant of TRL that fits. In float32 the first step of another variant differs by rounding
alone. Later steps start from weights that differ by more than their last digits: Adam's first update is the sign of the
gradient, and where that is almost 0, rounding decides the sign. In bfloat16 each number has 8 bits, and other batch
layouts round differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from caldpo.bench.benchmark_settings import VARIANTS
from caldpo.bench.worker_job import Answer

# largest relative difference of the first step, and of later ones
TOLERANCE = {"float32": (1e-5, 1e-3), "bfloat16": (5e-2, 1e-1)}


@dataclass(frozen=True)
class Difference:
    """Largest relative differences of a variant from the baseline."""

    loss: float
    first_grad_norm: float
    grad_norm: float
    problem: str | None  # why the variants disagree


def compare(baseline: Answer, other: Answer, tolerance: tuple[float, float]) -> Difference:
    """Compare a variant's steps with the baseline's; ``tolerance`` is that of the first step, and of later ones."""
    loss = _relative(baseline.losses, other.losses)
    norm = _relative(baseline.grad_norms, other.grad_norms)
    problem = None
    counts = {len(x) for a in (baseline, other) for x in (a.losses, a.grad_norms, a.step_digests)}
    if len(counts) > 1:
        problem = f"the numbers of steps differ: {sorted(counts)}"
    elif baseline.step_digests != other.step_digests:
        problem = "the steps trained on different token ids"
    else:
        beyond = (
            f"{name} of step {step + 1} differs by {value:.2g}"
            for name, differences in (("loss", loss), ("gradient norm", norm))
            for step, value in enumerate(differences)
            if not value <= tolerance[step > 0]  # NaN is no agreement
        )
        problem = next(beyond, None)
    return Difference(max(loss, default=0.0), norm[0] if norm else 0.0, max(norm, default=0.0), problem)


def disagreements(differences: Mapping[str, Difference]) -> list[str]:
    """List the variants that disagree with the baseline, with the problem."""
    return [f"{name}: {difference.problem}" for name, difference in differences.items() if difference.problem]


def _relative(expected: Sequence[float], values: Sequence[float]) -> list[float]:
    pairs = zip(expected, values, strict=False)
    return [abs(a - b) / abs(a) if a else abs(b) for a, b in pairs]


@dataclass(frozen=True)
class TimedWork:
    """Content of the timed steps, the same for every variant."""

    pairs: int
    response_tokens: int
    flops: int  # minimal, of the loss and its gradients; see caldpo.estimation.run_flops.minimal_workload
    run_pairs: int  # pairs of a run, warm-up included: those whose reference may be precomputed


@dataclass(frozen=True)
class Row:
    """Figures of a variant, medians over the rounds; None where it ran out of memory."""

    name: str
    title: str
    pairs_per_second: tuple[float, float, float] | None = None  # median, lowest and highest of the rounds
    response_tokens_per_second: float | None = None
    speed: float | None = None  # multiple of the baseline's
    peak_bytes: int | None = None
    memory: float | None = None  # the baseline's peak memory as a multiple of this one's
    peak_share: float | None = None  # of the measured matmul peak, by the minimal FLOPs
    reference_seconds_per_pair: float | None = None  # of precomputing its log-probs, which is not part of the steps
    difference: Difference | None = None
    estimated_bytes: int | None = None  # memory by caldpo.estimate, before the run; None where it has no figure

    @property
    def of_estimate(self) -> float | None:
        """Peak memory as a multiple of the estimate."""
        if self.peak_bytes is None or not self.estimated_bytes:
            return None
        return self.peak_bytes / self.estimated_bytes

    @property
    def first_run_pairs_per_second(self) -> float | None:
        """Speed over one epoch whose reference has yet to be computed; None where the variant ran out of memory."""
        if self.pairs_per_second is None:
            return None
        return 1 / (1 / self.pairs_per_second[0] + (self.reference_seconds_per_pair or 0.0))


def make_rows(
    answers: Mapping[str, Sequence[Answer]],
    baseline: str | None,
    differences: Mapping[str, Difference],
    work: TimedWork,
    matmul_flops: float,
    estimated: Mapping[str, int | None],
) -> list[Row]:
    """Make one row for each variant.

    Args:
        answers: by variant, one for each round; none for a variant that ran out of memory.
        baseline: variant that ratios refer to; None: no ratios.
        differences: from the baseline, by variant.
        work: of the timed steps.
        matmul_flops: measured matmul peak, FLOP/s.
        estimated: bytes, by variant.
    """
    base = answers[baseline] if baseline else []
    rows = []
    for name, rounds in answers.items():
        title, difference, estimate = VARIANTS[name].title, differences.get(name), estimated.get(name)
        if not rounds:
            rows.append(Row(name, title, difference=difference, estimated_bytes=estimate))
            continue
        times = [answer.seconds for answer in rounds]
        seconds, peak = median(times), median(_peaks(rounds))
        passes = [answer.reference_seconds for answer in rounds if answer.reference_seconds is not None]
        rows.append(
            Row(
                name,
                title,
                pairs_per_second=(work.pairs / seconds, work.pairs / max(times), work.pairs / min(times)),
                response_tokens_per_second=work.response_tokens / seconds,
                speed=median(answer.seconds for answer in base) / seconds if base else None,
                peak_bytes=int(peak),
                memory=median(_peaks(base)) / peak if base else None,
                peak_share=work.flops / seconds / matmul_flops,
                reference_seconds_per_pair=median(passes) / work.run_pairs if passes else None,
                difference=difference,
                estimated_bytes=estimate,
            )
        )
    return rows


def _peaks(rounds: Sequence[Answer]) -> list[int]:
    return [answer.memory["peak"] for answer in rounds]
