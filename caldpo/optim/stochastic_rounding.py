"""AdamW whose updates are rounded to bfloat16 by chance (torchao, the extra ``ao``)."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import nn

from caldpo.config.bounds import Fraction, NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.optim.lr_schedule import Schedule
from caldpo.optim.optimizer_base import OptimizerChoice, require_package
from caldpo.optim.param_groups import decay_groups

OPTION = "adamw_stochastic"


class StochasticAdamW(OptimizerChoice):
    """For ``trainer.precision=bf16-true``: computed in float32, written to bfloat16 weights up or down by the odds.

    An update of a tenth of a weight's last digit moves it with probability 1/10, where rounding to the nearest never
    would: the expectation is right, at a quarter of the memory of float32 weights with two float32 moments.

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
        """Look whether torchao is installed, and whether there is anything to round.

        Raises:
            CaldpoError: it is not, the weights are not going to be bfloat16, or several devices have whole ones.
        """
        require_package("torchao", OPTION)
        if not torch.cuda.is_available() and not any(map(shutil.which, ("g++", "c++", "clang++"))):
            raise CaldpoError(
                "its update is compiled, and on a CPU that takes a C++ compiler, which is not there",
                key="optim",
                value=OPTION,
                remedy="install g++, or choose optim=adamw",
            )
        if replicas:
            raise CaldpoError(
                "draws its rounding on each device for itself, so that whole weights on several would drift apart",
                key="optim",
                value=OPTION,
                remedy="set trainer.strategy=fsdp, where each weight's part is one device's, or train on one device",
            )
        if precision != "bf16-true":
            raise CaldpoError(
                f"rounds bfloat16 weights, which trainer.precision={precision} does not have",
                key="optim",
                value=OPTION,
                remedy="set trainer.precision=bf16-true, or choose optim=adamw",
            )

    def build(self, policy: nn.Module, total_steps: int, *, scaled: bool = False) -> dict[str, Any]:
        """The optimiser and its schedule; see :meth:`caldpo.optim.adamw.AdamW.build`."""
        from torchao.optim import _AdamW  # torchao's name of its AdamW with states of full size

        optimizer = _AdamW(
            decay_groups(policy, self.weight_decay),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            bf16_stochastic_round=True,
        )
        return self.schedule.attach(optimizer, total_steps)
