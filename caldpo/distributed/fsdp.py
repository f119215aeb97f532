"""A causal language model sharded over ranks by PyTorch's FSDP2 (``fully_shard``).

Each decoder layer is a unit: gathered for its forward and its backward pass, and sharded again after it. What is left
(embedding, last norm, output head) is the root's: gathered in the forward pass and kept until the backward pass is
over, since the log-prob engine takes the output head's weight by itself, after the model's forward pass.

The weights come from the first rank alone. The others build the model without memory (on the meta device) and are sent
their parts, so that no more than one whole copy is in any machine's memory.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from caldpo.models.adapted_policy import base_model

_log = logging.getLogger("caldpo")


def shard(model: PreTrainedModel, mesh: DeviceMesh, device: torch.device, *, cpu_offload: bool = False) -> None:
    """Divide the model over the ranks of the mesh, in place; all of them have to take part.

    Args:
        model: with its weights on the first rank, on the meta device elsewhere.
        mesh: one dimension, over the ranks.
        device: where this rank computes.
        cpu_offload: keep parts, gradients and optimiser in main memory; they visit the device to compute.
    """
    first = dist.get_rank() == 0
    whole = model.state_dict() if first else {}
    buffers = dict(model.named_buffers(remove_duplicate=False)) if first else {}
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if cpu_offload else OffloadPolicy()
    layers = decoder_layers(model)
    if not layers and first:
        _log.warning(
            "%s does not say which of its modules are its layers: all of it is gathered at once, on every device",
            type(base_model(model)).__name__,
        )
    for layer in layers:
        fully_shard(layer, mesh=mesh, offload_policy=offload)
    fully_shard(model, mesh=mesh, offload_policy=offload, reshard_after_forward=False)
    place = torch.device("cpu") if cpu_offload else device
    if not first:
        model.to_empty(device=place)
        model.tie_weights()  # each name has got memory of its own
    set_model_state_dict(model, whole, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    _send_buffers(model, buffers, device)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that transformers says are not to be split: a decoder's own, in their order."""
    names = set(getattr(base_model(model), "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    inside = {part for layer in found for part in layer.modules() if part is not layer}
    return [layer for layer in found if layer not in inside]


def is_sharded(model: nn.Module) -> bool:
    """Whether its weights are sharded over ranks, so that all ranks have to run it together."""
    return isinstance(model, FSDPModule)


def reshard(module: nn.Module) -> None:
    """Put away what is still gathered after a forward pass without a backward pass.

    While it is gathered, a module's parameters are others than those that an optimiser has to hold.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(value: Tensor) -> Tensor:
    """The tensor itself, gathered where it is sharded: then all ranks have to ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """All weights in main memory, on the first rank; empty on the others, which have to ask, too."""
    if not is_sharded(model):
        return dict(model.state_dict())
    gathered: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    state = dict(gathered)
    return state | {name: state[kept] for name, kept in tied_names(model).items() if kept in state}


def tied_names(module: nn.Module) -> dict[str, str]:
    """Further names of weights that have several, each with the first; the same on all ranks."""
    first: dict[int, str] = {}
    return {
        name: first[id(value)]
        for name, value in module.named_parameters(remove_duplicate=False)
        if first.setdefault(id(value), name) != name
    }


def _send_buffers(model: nn.Module, those: dict[str, Tensor], device: torch.device) -> None:
    """Give every rank the first one's buffers: most (rotary frequencies, masks) are in no state.

    They are whole on each device, also where parts of weights stay in main memory.
    """
    for place, module in model.named_modules():
        for name, value in module.named_buffers(recurse=False):
            full = f"{place}.{name}".lstrip(".")
            sent = those[full].to(device) if those else torch.empty_like(value, device=device)
            dist.broadcast(sent, src=0)
            module._buffers[name] = sent
