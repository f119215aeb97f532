"""Optimisers that save memory: by bitsandbytes (the extra ``bnb``), and by torchao's stochastic rounding (``ao``)."""

from __future__ import annotations

import shutil
from typing import Any, Literal

import torch

from caldpo.config.bounds import Fraction, NonNegative, Positive
from caldpo.config.extras import require_package
from caldpo.config.signatures import validated
from caldpo.optim.optimizer_base import OptimizerChoice, Schedule, refuse_sharded, refused


class FromBitsAndBytes(OptimizerChoice):
    """Base of the optimisers of bitsandbytes."""

    option: str

    def check(self, precision: str, *, sharded: bool = False, replicas: bool = False) -> None:
        require_package("bitsandbytes", "optim", self.option)
        if sharded:
            refuse_sharded(self.option)  # its kernels do not support PyTorch's sharded tensors


class LowMemoryAdamW(FromBitsAndBytes):
    """AdamW with 8-bit moments (Dettmers et al. 2022), in blocks of 256 with a scale each, or with paged ones.

    Weights below 4,096 elements keep 32-bit moments. CUDA moves paged moments to the host and back when the memory of
    the GPU runs out.
    """

    @validated
    def __init__(
        self,
        schedule: Schedule,
        lr: Positive = 1e-6,
        beta1: Fraction = 0.9,
        beta2: Fraction = 0.999,
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
        bits: Literal[8, 32] = 8,
        paged: bool = False,
    ) -> None:
        self.schedule, self.lr, self.weight_decay = schedule, lr, weight_decay
        self.betas, self.eps, self.bits, self.paged = (beta1, beta2), eps, bits, paged
        self.option = "adamw_paged" if paged else "adamw_8bit"

    def optimizer(self, groups: list[dict[str, Any]], scaled: bool) -> torch.optim.Optimizer:
        import bitsandbytes

        return bitsandbytes.optim.AdamW(
            groups, lr=self.lr, betas=self.betas, eps=self.eps, optim_bits=self.bits, is_paged=self.paged
        )


class Lion(FromBitsAndBytes):
    """Lion, Chen et al. 2023: the sign of a moving average, and one moment in place of AdamW's two.

    Every weight moves by the learning rate, a third to a tenth of AdamW's. ``beta1`` is the share of the moment in the
    update, ``beta2`` the decay of the moment, ``bits`` its size.
    """

    option = "lion"

    @validated
    def __init__(
        self,
        schedule: Schedule,
        lr: Positive = 1e-7,
        beta1: Fraction = 0.9,
        beta2: Fraction = 0.99,
        weight_decay: NonNegative = 0.0,
        bits: Literal[8, 32] = 32,
    ) -> None:
        self.schedule, self.lr, self.weight_decay = schedule, lr, weight_decay
        self.betas, self.bits = (beta1, beta2), bits

    def optimizer(self, groups: list[dict[str, Any]], scaled: bool) -> torch.optim.Optimizer:
        import bitsandbytes

        return bitsandbytes.optim.Lion(groups, lr=self.lr, betas=self.betas, optim_bits=self.bits)


class StochasticAdamW(OptimizerChoice):
    """AdamW for ``trainer.precision=bf16-true``: computed in float32, rounded at random to bfloat16, without bias.

    An update of a tenth of a weight's last digit changes it with probability 1/10, where rounding to the nearest never
    would, with a quarter of the memory of float32 weights and two float32 moments.
    The two moments are bfloat16 themselves.
    """

    option = "adamw_stochastic"
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
        require_package("torchao", "optim", self.option)
        compiles = torch.cuda.is_available() or any(map(shutil.which, ("g++", "c++", "clang++")))
        if not compiles:
            why = "its update is compiled, which needs a C++ compiler on a CPU, and there is none"
            raise refused(self.option, why, "install g++, or choose optim=adamw")
        if replicas:
            why = "rounds at random on each device, so that full copies of weights on several would drift apart"
            remedy = "set trainer.strategy=fsdp, which shards each weight, or train on one device"
            raise refused(self.option, why, remedy)
        if precision != "bf16-true":
            why = f"rounds bfloat16 weights, which trainer.precision={precision} does not have"
            raise refused(self.option, why, "set trainer.precision=bf16-true, or choose optim=adamw")

    def optimizer(self, groups: list[dict[str, Any]], scaled: bool) -> torch.optim.Optimizer:
        from torchao.optim import _AdamW  # torchao's name of its AdamW with states of full size

        return _AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, bf16_stochastic_round=True)
