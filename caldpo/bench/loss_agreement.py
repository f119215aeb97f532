"""Whether all variants computed the same: losses and gradient norms of every step, against the first of TRL.

In float32 the first step differs by rounding alone. Later steps start from weights that differ by more than their
last digits: Adam's first update is the sign of the gradient, and where that is almost 0, rounding decides the sign.
In bfloat16 each number has 8 bits, and other batch layouts round otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caldpo.bench.worker_job import Answer

# largest relative difference of the first step, and of those after it
TOLERANCE = {"float32": (1e-5, 1e-3), "bfloat16": (5e-2, 1e-1)}


@dataclass(frozen=True)
class Difference:
    """The largest relative differences of a variant from the yardstick.

    Args:
        loss: of any step.
        first_grad_norm: of the first step.
        grad_norm: of any step.
        problem: why this is no agreement; None if it is.
    """

    loss: float
    first_grad_norm: float
    grad_norm: float
    problem: str | None


def compare(yardstick: Answer, other: Answer, tolerance: tuple[float, float]) -> Difference:
    """Hold a variant's steps against the yardstick's; ``tolerance`` is for the first step and for later ones."""
    loss = _relative(yardstick.losses, other.losses)
    norm = _relative(yardstick.grad_norms, other.grad_norms)
    problem = None
    counts = {len(x) for a in (yardstick, other) for x in (a.losses, a.grad_norms, a.step_digests)}
    if len(counts) > 1:
        problem = f"the numbers of steps differ: {sorted(counts)}"
    elif yardstick.step_digests != other.step_digests:
        problem = "the steps were given different token ids"
    else:
        for name, found in (("loss", loss), ("gradient norm", norm)):
            beyond = [
                f"{name} of step {step + 1} differs by {value:.2g}"
                for step, value in enumerate(found)
                if not value <= tolerance[step > 0]  # not a number is no agreement
            ]
            problem = problem or next(iter(beyond), None)
    return Difference(max(loss, default=0.0), norm[0] if norm else 0.0, max(norm, default=0.0), problem)


def disagreements(differences: Mapping[str, Difference]) -> list[str]:
    """A line for each variant that computed something else."""
    return [f"{name}: {found.problem}" for name, found in differences.items() if found.problem]


def _relative(expected: Sequence[float], found: Sequence[float]) -> list[float]:
    pairs = zip(expected, found, strict=False)
    return [abs(a - b) / abs(a) if a else abs(b) for a, b in pairs]
