"""AdamW with stochastic rounding to bfloat16 weights, by torchao (the extra ``ao``)."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import nn

from caldpo.config.bounds import Fraction, NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.optim.lr_schedule import Schedule
from caldpo.optim.optimizer_base import OptimizerChoice, decay_groups, require_package

OPTION = "adamw_stochastic"


class StochasticAdamW(OptimizerChoice):
    """For ``trainer.precision=bf16-true``: computed in float32, rounded at random to bfloat16, without bias.

    An update of a tenth of a weight's last digit changes it with probability 1/10, where rounding to the nearest never
    would, with a quarter of the memory of float32 weights and two float32 moments.

    Args:
        schedule: of the learning rate.
        lr: peak learning rate.
        beta1, beta2: decay of the two moments, which are bfloat16 themselves.
        eps: added to the denominator.
        weight_decay: decoupled, on matrices.
    """

    rounds_stochastically = True
    compiled_step = True

    @validated
    def __init__(
        self,
        schedule: Schedule,
        lr: Positive = 1e-6,
        beta1: Fraction = 0.9,
        beta2: Fraction = 0.999,
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
    ) -> None:
        self.schedule, self.lr, self.weight_decay = schedule, lr, weight_decay
        self.betas, self.eps = (beta1, beta2), eps

    def check(self, precision: str, *, sharded: bool = False, replicas: bool = False) -> None:
        """Check that torchao is installed and that stochastic rounding applies.

        Raises:
            CaldpoError: it is not, the weights are not bfloat16, or several devices hold full copies.
        """
        require_package("torchao", OPTION)
        if not torch.cuda.is_available() and not any(map(shutil.which, ("g++", "c++", "clang++"))):
            raise CaldpoError(
                "its update is compiled, which needs a C++ compiler on a CPU, and there is none",
                key="optim",
                value=OPTION,
                remedy="install g++, or choose optim=adamw",
            )
        if replicas:
            raise CaldpoError(
                "rounds at random on each device, so that full copies of weights on several would drift apart",
                key="optim",
                value=OPTION,
                remedy="set trainer.strategy=fsdp, which shards each weight, or train on one device",
            )
        if precision != "bf16-true":
            raise CaldpoError(
                f"rounds bfloat16 weights, which trainer.precision={precision} does not have",
                key="optim",
                value=OPTION,
                remedy="set trainer.precision=bf16-true, or choose optim=adamw",
            )

    def build(self, policy: nn.Module, total_steps: int, *, scaled: bool = False) -> dict[str, Any]:
        """Build the optimiser and its schedule; see :meth:`OptimizerChoice.build`."""
        from torchao.optim import _AdamW  # torchao's name of its AdamW with states of full size

        optimizer = _AdamW(
            decay_groups(policy, self.weight_decay),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            bf16_stochastic_round=True,
        )
        return self.schedule.attach(optimizer, total_steps)
