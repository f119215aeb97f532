"""Metrics of a batch of pairs, the same for every loss, and their exact means.

Names are those that users of TRL know. ``rewards/*`` are ``reward_beta`` times the log-ratio: one unit for all losses,
whatever each loss's own beta (TRL's are in units of that); ``log_ratios/*`` and ``logps/*`` are raw, summed per
response, nats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from caldpo.types import LossOutput, PairBatch, PairLogps

OF_CHOSEN = ("logps/chosen", "log_ratios/chosen", "rewards/chosen", "displacement")  # metrics of that response alone
OF_REJECTED = ("logps/rejected", "log_ratios/rejected", "rewards/rejected")
_OF_LOSS = ("loss", "terms/", "diagnostics/")


def pair_metrics(logps: PairLogps, reward_beta: float) -> dict[str, Float[Tensor, " pairs"]]:
    """Metrics per pair. Without a reference only those of ``metric_definitions.WITHOUT_REFERENCE``.

    ``rewards/accuracies`` is 1 where the chosen's implicit reward is the larger, 0 where it is the smaller,
    and 1/2 where they are equal, so that an untrained policy scores chance. ``displacement`` is 1 where the
    chosen response's log-prob fell below the reference's.
    """
    metrics = {"logps/chosen": logps.policy_chosen, "logps/rejected": logps.policy_rejected}
    if logps.reference_chosen is not None:
        a, b = logps.chosen_log_ratio, logps.rejected_log_ratio
        metrics |= {
            "log_ratios/chosen": a,
            "log_ratios/rejected": b,
            "rewards/chosen": reward_beta * a,
            "rewards/rejected": reward_beta * b,
            "rewards/margins": reward_beta * (a - b),
            "rewards/accuracies": (a > b).to(a.dtype) + 0.5 * (a == b).to(a.dtype),
            "displacement": (a < 0).to(a.dtype),
        }
    return {name: value.detach() for name, value in metrics.items()}


def metric_weights(batch: PairBatch, names: Iterable[str]) -> dict[str, Float[Tensor, " pairs"]]:
    """Weights of those metrics that are not about every row: of responses that are not absent.

    What is named in neither :data:`OF_CHOSEN` nor :data:`OF_REJECTED` is about rows with both responses; the loss, its
    terms and diagnostics are about all. Empty where every row has both responses.
    """
    if batch.chosen_present is None:
        return {}
    chosen, rejected = batch.response_weights
    own = dict.fromkeys(OF_CHOSEN, chosen) | dict.fromkeys(OF_REJECTED, rejected)
    return {name: own.get(name, chosen * rejected) for name in names if not name.startswith(_OF_LOSS)}


def loss_metrics(output: LossOutput) -> dict[str, Float[Tensor, " pairs"]]:
    """``loss``, its terms as ``terms/*`` and its diagnostics as ``diagnostics/*``, per pair."""
    return {
        "loss": output.loss.detach(),
        **{f"terms/{name}": value.detach() for name, value in output.terms.items()},
        **{f"diagnostics/{name}": value.detach() for name, value in output.diagnostics.items()},
    }


class WeightedMeans(Metric):
    """Means over pairs of any number of named values: exact over micro-batches of any size, and over ranks.

    One vector of sums and one of weights, so that reducing over ranks is one call whatever the number of names. The
    names are those of the first update after a reset, and have to be the same on every rank. A mean over nothing is no
    mean: its name is left out of the results.
    """

    full_state_update = False
    sums: Tensor
    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.names: tuple[str, ...] = ()
        self.add_state("sums", torch.zeros(0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weights", torch.zeros(0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, values: Mapping[str, Tensor], weight: Tensor, own_weights: Mapping[str, Tensor] = MappingProxyType({})
    ) -> None:
        """Add the values of one micro-batch, each of shape ``(pairs,)`` like ``weight``.

        ``own_weights`` are of values that are about some of the rows: instead of ``weight``, by name.
        """
        if not len(self.sums):
            self.names = tuple(values)
            self.sums = torch.zeros(len(values), dtype=torch.float64, device=self.sums.device)
            self.weights = torch.zeros_like(self.sums)
        elif self.names != tuple(values):
            raise ValueError(f"values named {tuple(values)} after {self.names}")
        stacked = torch.stack([v.double() for v in values.values()])
        own = weight.expand_as(stacked)
        if own_weights:
            own = torch.stack([own_weights.get(name, weight) for name in values])
        # A filler pair has weight 0; where() keeps its value out even if that is not a number.
        self.sums += torch.where(own > 0, stacked * own, 0).sum(dim=1)
        self.weights += own.double().sum(dim=1)

    def compute(self) -> dict[str, Tensor]:
        """The means by name, float64 scalars on the metric's device."""
        means = zip(self.names, self.sums / self.weights, self.weights.tolist(), strict=True)
        return {name: mean for name, mean, weight in means if weight > 0}

    def floats(self) -> dict[str, float]:
        """The means as plain numbers."""
        means = self.compute()
        return dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))


def sum_over_ranks(values: Tensor) -> Tensor:
    """``values`` summed over all processes; one call for a whole vector, queued without waiting for the result."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
