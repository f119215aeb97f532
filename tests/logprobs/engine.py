"""Compare the engine's log-probs of a model with the naive computation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from caldpo.config.conf_dir import conf_dir
from caldpo.data.collate import collate
from caldpo.logprobs import LogprobEngine
from caldpo.types import PairLogps
from tests.logprobs import naive
from tests.logprobs.models import VOCABULARY
from tests.logprobs.naive import PAIRS, WEIGHTS, Result

PART_ROWS = 9  # tokens of one part of the head's work, where a test sets CHUNK_BYTES to PART_ROWS * ROW_BYTES
ROW_BYTES = VOCABULARY * 4


def by_engine(
    model: Any,
    reference: Tensor,
    *,
    packed: bool,
    streamed: bool,
    forward: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Result:
    """Log-probs, losses and gradients of one batch, with the losses of the package.

    Args:
        model: made ready for packed rows if ``packed``.
        reference: log-probs, ``[2, pairs]``.
        packed: the layout.
        streamed: by ``engine.loss`` instead of a call of the engine.
        forward: a context of the forward pass.
    """
    engine = LogprobEngine(model)
    engine.cache_bytes = 2 * PART_ROWS * ROW_BYTES  # of some parts, not of all
    batch = collate(PAIRS, 0, layout="packed" if packed else "padded", weight=WEIGHTS)
    tokens = batch.lengths()
    losses, gradients, both = {}, {}, torch.empty(0)
    for name in naive.LOSSES:
        loss = instantiate(OmegaConf.load(conf_dir() / "loss" / f"{name}.yaml"))

        def summed(chosen: Tensor, rejected: Tensor, rows: slice, loss: Any = loss) -> Tensor:
            logps = PairLogps(chosen, rejected, *(given[rows] for given in (*reference, *tokens)))
            return torch.where(batch.weight[rows] > 0, loss(logps).loss, 0).sum()

        with forward():
            if streamed:
                value, *sides = engine.loss(batch, summed)
            else:
                sides = list(engine(batch))
                value = summed(sides[0], sides[1], slice(None))
        losses[name], gradients[name] = value.detach(), naive.gradients(value, model)
        both = torch.stack(sides).detach()
    return Result(both, losses, gradients)


def furthest(actual: Result, expected: Result) -> dict[str, float]:
    """Largest relative differences, of a gradient relative to the largest entry of the parameter's own."""
    scale = expected.logprobs.abs().clamp_min(1)
    most = {"log-prob": float(((actual.logprobs - expected.logprobs).abs() / scale).max())}
    for name, value in expected.losses.items():
        most[f"{name} loss"] = float((actual.losses[name] - value).abs() / value.abs())
        assert actual.gradients[name].keys() == expected.gradients[name].keys()
        largest = max(float(gradient.abs().max()) for gradient in expected.gradients[name].values())
        for parameter, gradient in expected.gradients[name].items():
            own = float(gradient.abs().max())
            # a bias of keys changes no attention: its gradient is rounding, and is compared with the others
            size = own if own > 1e-6 * largest else largest
            most[f"{name} {parameter}"] = float((actual.gradients[name][parameter] - gradient).abs().max()) / size
    return most


def assert_equal(actual: Result, expected: Result, tolerance: float = 1e-5) -> None:
    """Everything agrees to ``tolerance``, relative."""
    most = furthest(actual, expected)
    beyond = {what: size for what, size in most.items() if not size < tolerance}
    assert not beyond, beyond
    assert all(gradient.abs().max() > 1e-3 for name in expected.losses for gradient in [_largest(actual, name)])


def _largest(result: Result, name: str) -> Tensor:
    return max(result.gradients[name].values(), key=lambda gradient: float(gradient.abs().max()))


def errors(actual: Result, expected: Result) -> dict[str, float]:
    """Root of the summed squared errors, of gradients over all parameters together and relative to their size."""
    sizes = {"log-prob": float((actual.logprobs - expected.logprobs).norm())}
    for name, gradients in expected.gradients.items():
        flat = torch.cat([gradient.flatten() for gradient in gradients.values()])
        other = torch.cat([actual.gradients[name][parameter].flatten() for parameter in gradients])
        sizes[f"{name} gradient"] = float((other - flat).norm() / flat.norm())
    return sizes
