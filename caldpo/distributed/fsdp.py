"""Shard a causal language model over ranks with PyTorch's FSDP2 (``fully_shard``).

Each decoder layer is a unit: gathered for its forward and its backward pass, and resharded after it. The rest
(embedding, last norm, output head) belongs to the root: gathered in the forward pass and kept until the backward pass
is over, since the log-prob engine takes the output head's weight by itself, after the model's forward pass.

The weights come from the first rank alone. The others build the model on the meta device and receive their shards, so
that no machine's memory holds more than one full copy.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_log = logging.getLogger("caldpo")


def shard(model: PreTrainedModel, mesh: DeviceMesh, device: torch.device, *, cpu_offload: bool = False) -> None:
    """Shard a model over the ranks of the mesh, in place; all of them have to take part.

    Args:
        model: with its weights on the first rank, on the meta device elsewhere.
        mesh: one dimension, over the ranks.
        device: where this rank computes.
        cpu_offload: keep shards, gradients and optimiser in main memory; they visit the device to compute.
    """
    first = dist.get_rank() == 0
    full_state = model.state_dict() if first else {}
    buffers = dict(model.named_buffers(remove_duplicate=False)) if first else {}
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if cpu_offload else OffloadPolicy()
    layers = decoder_layers(model)
    if not layers and first:
        _log.warning(
            "%s does not declare its decoder layers: all of it is gathered at once, on every device",
            model.config.model_type,
        )
    for layer in layers:
        fully_shard(layer, mesh=mesh, offload_policy=offload)
    fully_shard(model, mesh=mesh, offload_policy=offload, reshard_after_forward=False)
    if not first:
        model.to_empty(device=torch.device("cpu") if cpu_offload else device)
        model.tie_weights()  # to_empty gives each name memory of its own
    set_model_state_dict(model, full_state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    _broadcast_buffers(model, buffers, device)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """List the layers that transformers declares indivisible, in their order; those of the base under an adapter."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    nested = {part for layer in layers for part in layer.modules() if part is not layer}
    return [layer for layer in layers if layer not in nested]


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's weights are sharded over ranks, so that all ranks have to run it together."""
    return isinstance(model, FSDPModule)


def reshard(module: nn.Module) -> None:
    """Free what is still gathered after a forward pass without a backward pass.

    While it is gathered, a module's parameters are others than those that an optimiser has to hold.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def full_tensor(value: Tensor) -> Tensor:
    """Gather a tensor where it is sharded, on all ranks together; else return it unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Gather all weights in the main memory of the first rank; empty on the others, which have to take part."""
    if not is_sharded(model):
        return dict(model.state_dict())
    gathered: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    state = dict(gathered)
    return state | {name: state[first] for name, first in tied_names(model).items() if first in state}


def tied_names(module: nn.Module) -> dict[str, str]:
    """Map each further name of a tied weight to its first name; the same on all ranks."""
    first: dict[int, str] = {}
    return {
        name: first[id(value)]
        for name, value in module.named_parameters(remove_duplicate=False)
        if first.setdefault(id(value), name) != name
    }


def _broadcast_buffers(model: nn.Module, buffers: dict[str, Tensor], device: torch.device) -> None:
    """Broadcast the first rank's buffers, most of which (rotary frequencies, masks) are in no state dict.

    They are full on each device, also with CPU offload.
    """
    for prefix, module in model.named_modules():
        for name, value in module.named_buffers(recurse=False):
            key = f"{prefix}.{name}".lstrip(".")
            buffer = buffers[key].to(device) if buffers else torch.empty_like(value, device=device)
            dist.broadcast(buffer, src=0)
            setattr(module, name, buffer)
