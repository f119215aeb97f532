"""Locate non-finite values in an optimiser step: which pairs, which log-probs or terms, or whose gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from caldpo.types import PairBatch, PairLogps
from caldpo.utils.finite_checks import MAX_NAMED, first_names, nonfinite_names

LOGPS = {
    "policy_chosen": "the policy's log-prob of the chosen",
    "policy_rejected": "the policy's log-prob of the rejected",
    "reference_chosen": "the reference's log-prob of the chosen",
    "reference_rejected": "the reference's log-prob of the rejected",
}


@dataclass(frozen=True, slots=True)
class SeenBatch:
    """A micro-batch as a training step computed it, on its device."""

    batch: PairBatch
    logps: PairLogps  # detached
    values: dict[str, Tensor]  # the loss and its terms per pair, by the names they are logged under


@dataclass(frozen=True, slots=True)
class Finding:
    """Non-finite values that one rank, or with :func:`merged` all of them, located in a step."""

    pairs: int  # real ones of the step
    bad: int  # pairs with a non-finite value
    named: tuple[tuple[str, str], ...]  # some of those: where they come from, and which values
    origins: tuple[str, ...]  # of some of all pairs
    parameters: tuple[str, ...] = ()  # whose gradient is not finite; empty also where the gradients were gone
    weights: tuple[str, ...] = ()  # parameters whose own values are not finite
    graded: int = 0  # parameters that had a gradient

    def __str__(self) -> str:
        if self.bad:
            kinds = {values for _, values in self.named}
            if len(kinds) == 1:  # named once
                listed = f"{kinds.pop()} not finite: {first_names([origin for origin, _ in self.named], self.bad)}"
            else:
                pairs = [f"{origin} ({values})" for origin, values in self.named]
                listed = f"not finite: {first_names(pairs, self.bad)}"
            parts = [f"{self.bad} of {self.pairs} pairs, {listed}"]
        else:
            parts = [
                f"log-probs and losses of all {self.pairs} pairs ({first_names(self.origins, self.pairs)}) are finite,"
                " and the gradient alone is not"
            ]
        if self.parameters and len(self.parameters) < self.graded:
            parts.append(f"non-finite gradient of {first_names(self.parameters, len(self.parameters))}")
        elif self.parameters:
            parts.append(f"non-finite gradient of all {self.graded} parameters")
        elif self.graded and not self.bad:
            parts.append("each entry of it is finite, and its norm overflows its dtype")
        if self.weights:
            parts.append(f"non-finite weights already: {first_names(self.weights, len(self.weights))}")
        return "; ".join(parts)


def locate(seen: Sequence[SeenBatch], policy: nn.Module | None, origin: Callable[[int, str], str]) -> Finding:
    """Locate non-finite values in a step's micro-batches and gradients. Waits for the device.

    Args:
        seen: the micro-batches of this rank.
        policy: with the step's gradients; None where they are gone.
        origin: describes where a pair comes from, by its row and split.
    """
    real: list[tuple[str, list[str]]] = []
    for one in seen:
        flags = _nonfinite_flags(one)
        for place, (row, weight) in enumerate(zip(one.batch.index.tolist(), one.batch.weight.tolist(), strict=True)):
            if weight > 0:
                values = [name for name, flag in flags.items() if flag[place]]
                real.append((origin(row, one.batch.split), values))
    bad = [(place, ", ".join(values)) for place, values in real if values]
    finding = Finding(
        pairs=len(real),
        bad=len(bad),
        named=tuple(bad[:MAX_NAMED]),
        origins=tuple(place for place, _ in real[:MAX_NAMED]),
    )
    if policy is None:
        return finding
    return replace(
        finding,
        parameters=tuple(nonfinite_gradients(policy)),
        weights=tuple(nonfinite_names((name, p.detach()) for name, p in policy.named_parameters())),
        graded=sum(p.grad is not None for p in policy.parameters()),
    )


def merged(findings: Sequence[Finding]) -> Finding:
    """Merge the findings of all ranks, whose gradients are the same, or shards of the same."""
    return Finding(
        pairs=sum(f.pairs for f in findings),
        bad=sum(f.bad for f in findings),
        named=tuple(one for f in findings for one in f.named)[:MAX_NAMED],
        origins=tuple(text for f in findings for text in f.origins)[:MAX_NAMED],
        parameters=tuple(dict.fromkeys(name for f in findings for name in f.parameters)),
        weights=tuple(dict.fromkeys(name for f in findings for name in f.weights)),
        graded=findings[0].graded,
    )


def nonfinite_gradients(policy: nn.Module) -> list[str]:
    """Name the parameters whose gradient is not finite."""
    return nonfinite_names((name, p.grad) for name, p in policy.named_parameters() if p.grad is not None)


def _nonfinite_flags(one: SeenBatch) -> dict[str, list[bool]]:
    """Flag the pairs whose log-prob or term is not finite, by name; the loss only where none of its parts is."""
    parts = {words: getattr(one.logps, name) for name, words in LOGPS.items()}
    parts |= {name: value for name, value in one.values.items() if name.startswith("terms/")}
    parts["loss"] = one.values["loss"]
    flags = {name: (~value.isfinite()).tolist() for name, value in parts.items() if value is not None}
    explained = [any(flags[name][i] for name in flags if name != "loss") for i in range(one.batch.pairs)]
    flags["loss"] = [bad and not cause for bad, cause in zip(flags["loss"], explained, strict=True)]
    return flags
