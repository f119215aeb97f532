"""Metrics of a batch of pairs, the same for every loss, and their exact means.

Names are those that users of TRL know. ``rewards/*`` are ``reward_beta`` times the log-ratio: one unit for all losses,
whatever each loss's own beta (TRL's are in units of that); ``log_ratios/*`` and ``logps/*`` are raw, summed per
response, nats.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from caldpo.types import LossOutput, PairLogps


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


def loss_metrics(output: LossOutput) -> dict[str, Float[Tensor, " pairs"]]:
    """``loss``, its terms as ``terms/*`` and its diagnostics as ``diagnostics/*``, per pair."""
    return {
        "loss": output.loss.detach(),
        **{f"terms/{name}": value.detach() for name, value in output.terms.items()},
        **{f"diagnostics/{name}": value.detach() for name, value in output.diagnostics.items()},
    }


class WeightedMeans(Metric):
    """Means over pairs of any number of named values: exact over micro-batches of any size, and over ranks.

    One vector of sums, so that reducing over ranks is one call whatever the number of names. The names are
    those of the first update after a reset, and have to be the same on every rank.
    """

    full_state_update = False
    sums: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.names: tuple[str, ...] = ()
        self.add_state("sums", torch.zeros(0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, Tensor], weight: Tensor) -> None:
        """Add the values of one micro-batch, each of shape ``(pairs,)`` like ``weight``."""
        if not len(self.sums):
            self.names = tuple(values)
            self.sums = torch.zeros(len(values), dtype=torch.float64, device=self.sums.device)
        elif self.names != tuple(values):
            raise ValueError(f"values named {tuple(values)} after {self.names}")
        stacked = torch.stack([v.double() for v in values.values()])
        # A filler pair has weight 0; where() keeps its value out even if that is not a number.
        self.sums += torch.where(weight > 0, stacked * weight, 0).sum(dim=1)
        self.weight += weight.double().sum()

    def compute(self) -> dict[str, Tensor]:
        """The means by name, float64 scalars on the metric's device."""
        return dict(zip(self.names, self.sums / self.weight, strict=True))

    def floats(self) -> dict[str, float]:
        """The means as plain numbers, fetched from the device in one go."""
        means = self.compute()
        return dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))


def sum_over_ranks(values: Tensor) -> Tensor:
    """``values`` summed over all processes; one call for a whole vector, queued without waiting for the result."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
