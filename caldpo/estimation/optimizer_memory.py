"""Memory of an optimiser, measured on a small model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from caldpo.estimation.step_memory import OTHER, LiveBytes
from caldpo.optim.optimizer_base import OptimizerChoice

_WIDTH = 64  # of the measured square matrices


class OptimizerMemory(NamedTuple):
    """Bytes that an optimiser keeps between steps, and allocates during a step."""

    state: int
    temporary: int


def optimizer_memory(
    optim: OptimizerChoice, parameters: Iterable[Tensor], device: str, *, scaled: bool = False
) -> OptimizerMemory:
    """Measure what an optimiser needs for ``parameters``, of which only shapes and dtypes are read.

    Two steps of the real optimiser on two matrices, and on three, give the bytes of state per element and per tensor,
    and whether temporaries grow with all parameters (one kernel for all tensors) or with the largest (a loop).

    PyTorch chooses between the two ways by ``device``, ``cpu`` or ``cuda``. ``scaled``: float16 arithmetic scales the
    gradients.
    """
    trained = list(parameters)
    state = temporary = 0
    for dtype in {p.dtype for p in trained}:
        sizes = [p.numel() for p in trained if p.dtype == dtype]
        with unset_fake_temporarily():  # some optimisers read values, such as Adafactor a weight's norm
            per_tensor, per_element, growing, fixed = _rates(optim, dtype, device, scaled)
        state += round(per_tensor * len(sizes) + per_element * sum(sizes))
        temporary += round(growing * sum(sizes) + fixed * max(sizes))
    return OptimizerMemory(state, temporary)


def _rates(optim: OptimizerChoice, dtype: torch.dtype, device: str, scaled: bool) -> tuple[float, float, float, float]:
    """Bytes of state per tensor and per element; temporary bytes per element of all, and of the largest tensor.

    State per row and column counts as state per element of a small matrix: 1/16 byte.
    """
    elements = _WIDTH**2
    (state, two), (_, three) = (_measure(optim, dtype, device, scaled, matrices) for matrices in (2, 3))
    doubled, _ = _measure(optim, dtype, device, scaled, 2, rows=2 * _WIDTH)
    per_element = (doubled - state) / elements
    per_tensor = state - per_element * elements
    growing = (three - two) / elements
    return per_tensor, per_element, growing, max(0.0, two / elements - 2 * growing)


def _measure(
    optim: OptimizerChoice, dtype: torch.dtype, device: str, scaled: bool, matrices: int, rows: int = _WIDTH
) -> tuple[int, int]:
    """Bytes of state of the first matrix, and temporary bytes of the second step, which creates no state."""
    model = nn.ParameterList(nn.Parameter(torch.ones(rows, _WIDTH, dtype=dtype)) for _ in range(matrices))
    optimizer: torch.optim.Optimizer = optim.build(model, 10, scaled=scaled)["optimizer"]
    for group in optimizer.param_groups:
        if device == "cuda" and not group.get("fused") and group.get("foreach", False) is None:
            group["foreach"] = True  # PyTorch's default on CUDA; it works on a CPU as well
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = sum(s.nbytes for s in optimizer.state[model[0]].values() if isinstance(s, Tensor))
    if optim.compiled_step:  # operations inside a compiled step are not seen
        return state, 0
    with LiveBytes(model) as live:
        live.add((s for state in optimizer.state.values() for s in state.values() if isinstance(s, Tensor)), OTHER)
        fixed = live.total
        optimizer.step()
    return state, live.peak - fixed
