"""What each device holds where weights, gradients or optimiser states are sharded over several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from caldpo.distributed.fsdp import decoder_layers

_DIVIDED = {  # strategy: what is sharded
    "fsdp": ("weights", "gradients", "optimizer"),
    "deepspeed_stage_2": ("gradients", "optimizer"),
}
LAYERS_AT_ONCE = 2
"""Decoder layers that are whole at a time: the one that computes, and the next, which is gathered meanwhile."""


@dataclass(frozen=True, slots=True)
class Division:
    """Into how many parts the strategy divides what.

    Args:
        weights, gradients, optimizer: parts; 1 is whole on each device.
        offload: names of those whose parts lie in main memory.
        copies: whether every device has a whole model whose gradients are averaged (DDP).
    """

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    offload: frozenset[str] = frozenset()
    copies: bool = False

    @staticmethod
    def of(strategy: str, devices: int, *, cpu_offload: bool = False) -> Division:
        """By the strategy's name.

        Args:
            strategy: ``trainer.strategy``; one without division is DDP on several devices.
            devices: of all nodes together.
            cpu_offload: parts lie in main memory: all of FSDP's, the optimiser's states of DeepSpeed's.
        """
        sharded = _DIVIDED.get(strategy, ())
        parts = dict.fromkeys(sharded, devices)
        away = sharded if strategy == "fsdp" else ("optimizer",) if sharded else ()
        return Division(**parts, offload=frozenset(away if cpu_offload else ()), copies=not sharded and devices > 1)

    def part(self, name: str, size: int) -> int:
        """Bytes that a device has of ``size``, rounded up; 0 where they lie in main memory."""
        return 0 if name in self.offload else self.part_anywhere(name, size)

    def part_anywhere(self, name: str, size: int) -> int:
        """Bytes of one process, wherever they lie."""
        return -(-size // getattr(self, name))


@dataclass(frozen=True, slots=True)
class Groups:
    """Bytes of what is gathered together.

    Args:
        layer: weights of the largest decoder layer.
        root: weights outside of the layers: embedding, last norm, output head.
        layer_trained, root_trained: of these, what has a gradient.
    """

    layer: int
    root: int
    layer_trained: int
    root_trained: int

    @staticmethod
    def of(model: PreTrainedModel) -> Groups:
        """The groups of a model; one whose layers are not known is a group of its own."""
        layers = decoder_layers(model)
        inside = {id(p) for layer in layers for p in layer.parameters()}
        outside = [p for p in model.parameters() if id(p) not in inside]

        def trained(parameters: Any) -> int:
            return sum(p.nbytes for p in parameters if p.requires_grad)

        return Groups(
            layer=max((sum(p.nbytes for p in layer.parameters()) for layer in layers), default=0),
            root=sum(p.nbytes for p in outside),
            layer_trained=max((trained(layer.parameters()) for layer in layers), default=0),
            root_trained=trained(outside),
        )


def gathered(groups: Groups, division: Division) -> int:
    """Bytes of weights and gradients that are whole at the most demanding moment, beside their parts.

    The root's weights stay whole from the forward to the end of the backward pass, and its gradient, which comes
    first, with them; of the layers, :data:`LAYERS_AT_ONCE` have whole weights and one a whole gradient.
    """
    weights = groups.root + LAYERS_AT_ONCE * groups.layer if division.weights > 1 else 0
    gradients = groups.root_trained + groups.layer_trained if division.gradients > 1 else 0
    return weights + gradients
