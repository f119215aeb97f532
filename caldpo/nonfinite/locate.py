"""Where in an optimiser step a number went bad: in which pairs, in what of them, or only in whose gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from caldpo.types import PairBatch, PairLogps

NAMED = 5  # pairs, or parameters, that a message names

LOGPS = {
    "policy_chosen": "the policy's log-prob of the chosen",
    "policy_rejected": "the policy's log-prob of the rejected",
    "reference_chosen": "the reference's log-prob of the chosen",
    "reference_rejected": "the reference's log-prob of the rejected",
}


@dataclass(frozen=True, slots=True)
class SeenBatch:
    """A micro-batch as a training step saw it, on its device.

    Args:
        batch: the pairs.
        logps: of policy and reference, detached.
        values: the loss and its terms per pair, by the names they are logged under.
    """

    batch: PairBatch
    logps: PairLogps
    values: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rank, or with :func:`merged` all of them, found in a step.

    Args:
        pairs: real pairs of the step.
        bad: pairs that have something which is no finite number.
        named: some of those: where they come from, and what of them.
        origins: where some of all pairs come from.
        parameters: whose gradient is not finite; none also where gradients could not be looked at.
        weights: of which parameters the values themselves are not finite.
        graded: parameters that had a gradient to look at.
    """

    pairs: int
    bad: int
    named: tuple[tuple[str, str], ...]
    origins: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    graded: int = 0

    def __str__(self) -> str:
        if self.bad:
            kinds = {what for _, what in self.named}
            if len(kinds) == 1:  # said once
                listed = f"{kinds.pop()} not finite: {some_of([origin for origin, _ in self.named], self.bad)}"
            else:
                listed = f"not finite: {some_of([f'{origin} ({what})' for origin, what in self.named], self.bad)}"
            said = [f"{self.bad} of {self.pairs} pairs, {listed}"]
        else:
            said = [
                f"log-probs and losses of all {self.pairs} pairs ({some_of(self.origins, self.pairs)}) are finite, and"
                " the gradient alone is not"
            ]
        if self.parameters and len(self.parameters) < self.graded:
            said.append(f"not finite is the gradient of {some_of(self.parameters, len(self.parameters))}")
        elif self.graded and not self.parameters and not self.bad:
            said.append("each entry of it is finite, and the norm of all is beyond their dtype")
        elif self.parameters:
            said.append(f"not finite is the gradient of all {self.graded} parameters")
        if self.weights:
            said.append(f"weights are not finite already: {some_of(self.weights, len(self.weights))}")
        return "; ".join(said)


def find(seen: Sequence[SeenBatch], policy: nn.Module | None, origin: Callable[[PairBatch, int], str]) -> Finding:
    """Look through a step's micro-batches and, where they are still there, its gradients. This waits for the device.

    Args:
        seen: the micro-batches of this rank.
        policy: whose gradients are those of the step; None where they are gone.
        origin: where the pair at a row of a batch's ``index`` comes from.
    """
    pairs, bad = 0, 0
    named: list[tuple[str, str]] = []
    origins: list[str] = []
    for one in seen:
        wrong = _wrong(one)
        for place, (row, weight) in enumerate(zip(one.batch.index.tolist(), one.batch.weight.tolist(), strict=True)):
            if weight <= 0:
                continue
            pairs += 1
            if len(origins) < NAMED:
                origins.append(origin(one.batch, row))
            what = [name for name, flags in wrong.items() if flags[place]]
            bad += bool(what)
            if what and len(named) < NAMED:
                named.append((origin(one.batch, row), ", ".join(what)))
    if policy is None:
        return Finding(pairs, bad, tuple(named), tuple(origins))
    weights = not_finite((name, p.detach()) for name, p in policy.named_parameters())
    graded = sum(p.grad is not None for p in policy.parameters())
    return Finding(pairs, bad, tuple(named), tuple(origins), tuple(bad_gradients(policy)), tuple(weights), graded)


def merged(findings: Sequence[Finding]) -> Finding:
    """One finding of those of all ranks, whose gradients are the same, or parts of the same."""
    return Finding(
        pairs=sum(f.pairs for f in findings),
        bad=sum(f.bad for f in findings),
        named=tuple(one for f in findings for one in f.named)[:NAMED],
        origins=tuple(text for f in findings for text in f.origins)[:NAMED],
        parameters=tuple(dict.fromkeys(name for f in findings for name in f.parameters)),
        weights=tuple(dict.fromkeys(name for f in findings for name in f.weights)),
        graded=findings[0].graded,
    )


def bad_gradients(policy: nn.Module) -> list[str]:
    """Names of the parameters whose gradient is not finite."""
    return not_finite((name, p.grad) for name, p in policy.named_parameters() if p.grad is not None)


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that are not finite throughout, as far as this rank has them; one transfer."""
    named = [(name, tensor.to_local() if isinstance(tensor, DTensor) else tensor) for name, tensor in tensors]
    if not named:
        return []
    good = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist()
    return [name for (name, _), finite in zip(named, good, strict=True) if not finite]


def _wrong(one: SeenBatch) -> dict[str, list[bool]]:
    """By what it is, in which pairs it is not finite; the loss itself only where nothing that it is made of is."""
    parts = {words: getattr(one.logps, name) for name, words in LOGPS.items()}
    parts |= {name: value for name, value in one.values.items() if name.startswith("terms/")}
    parts["loss"] = one.values["loss"]
    flags = {name: (~value.isfinite()).tolist() for name, value in parts.items() if value is not None}
    made_of = [any(flags[name][i] for name in flags if name != "loss") for i in range(one.batch.pairs)]
    flags["loss"] = [bad and not known for bad, known in zip(flags["loss"], made_of, strict=True)]
    return flags


def some_of(named: Sequence[str], count: int) -> str:
    """The first names, and how many more there are of ``count``."""
    more = count - len(named[:NAMED])
    return ", ".join(named[:NAMED]) + (f" and {more} more" if more > 0 else "")
