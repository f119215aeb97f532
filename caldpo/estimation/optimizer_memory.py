"""Memory of an optimiser, learnt from the optimiser itself on a small model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from caldpo.estimation.live_bytes import OTHER, LiveBytes
from caldpo.optim.optimizer_base import OptimizerChoice

_WIDTH = 64  # of the stand-in's square matrices


@dataclass(frozen=True, slots=True)
class OptimizerMemory:
    """Bytes that an optimiser needs.

    Args:
        state: kept from step to step.
        temporary: taken during a step and given back.
    """

    state: int
    temporary: int


def optimizer_memory(
    spec: OptimizerChoice, parameters: Iterable[Tensor], device: str, *, scaled: bool = False
) -> OptimizerMemory:
    """What ``spec`` needs for ``parameters``, of which only shapes and dtypes are looked at.

    Two steps of the real optimiser on a stand-in of two matrices, and of three, tell how many bytes it keeps for an
    element and for a tensor, and whether its temporaries grow with all parameters (one kernel over all tensors)
    or with the largest alone (a loop over tensors).

    Args:
        parameters: those that are trained.
        device: ``cpu`` or ``cuda``: PyTorch's choice between the two ways depends on it.
        scaled: whether float16 arithmetic scales the gradients.
    """
    trained = list(parameters)
    state = temporary = 0
    for dtype in {p.dtype for p in trained}:
        sizes = [p.numel() for p in trained if p.dtype == dtype]
        per_tensor, per_element, growing, fixed = _rates(spec, dtype, device, scaled)
        state += round(per_tensor * len(sizes) + per_element * sum(sizes))
        temporary += round(growing * sum(sizes) + fixed * max(sizes))
    return OptimizerMemory(state, temporary)


def _rates(spec: OptimizerChoice, dtype: torch.dtype, device: str, scaled: bool) -> tuple[float, float, float, float]:
    """Bytes of state a tensor and an element; temporary bytes an element of all, and of the largest tensor.

    What an optimiser keeps by rows and columns counts as much an element as it is of a small matrix: 1/16 byte.
    """
    elements = _WIDTH**2
    (state, two), (_, three) = (_measure(spec, dtype, device, scaled, matrices) for matrices in (2, 3))
    twice, _ = _measure(spec, dtype, device, scaled, 2, rows=2 * _WIDTH)
    per_element = (twice - state) / elements
    per_tensor = state - per_element * elements
    growing = (three - two) / elements
    return per_tensor, per_element, growing, max(0.0, two / elements - 2 * growing)


def _measure(
    spec: OptimizerChoice, dtype: torch.dtype, device: str, scaled: bool, matrices: int, rows: int = _WIDTH
) -> tuple[int, int]:
    """Bytes of the state of the first matrix, and the temporary bytes of a step that creates no state."""
    model = nn.ParameterList(nn.Parameter(torch.ones(rows, _WIDTH, dtype=dtype)) for _ in range(matrices))
    optimizer: torch.optim.Optimizer = spec.build(model, 10, scaled=scaled)["optimizer"]
    for group in optimizer.param_groups:
        if device == "cuda" and not group.get("fused") and group.get("foreach", False) is None:
            group["foreach"] = True  # what PyTorch chooses there; it works on a CPU as well
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = sum(s.nbytes for s in optimizer.state[model[0]].values() if isinstance(s, Tensor))
    if getattr(spec, "compiled_step", False):  # which cannot be watched from inside
        return kept, 0
    with LiveBytes(model) as live:
        live.add((s for state in optimizer.state.values() for s in state.values() if isinstance(s, Tensor)), OTHER)
        fixed = live.total
        optimizer.step()
    return kept, live.peak - fixed
