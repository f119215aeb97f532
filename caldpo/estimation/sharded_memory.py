"""Bytes per device of weights, gradients and optimiser state that a strategy shards over several devices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from caldpo.distributed.fsdp import decoder_layers

State = Literal["weights", "gradients", "optimizer"]

_SHARDED: dict[str, tuple[State, ...]] = {  # by strategy
    "fsdp": ("weights", "gradients", "optimizer"),
    "deepspeed_stage_2": ("gradients", "optimizer"),
}
LAYERS_AT_ONCE = 2
"""Decoder layers that are unsharded at a time: the one that computes, and the next, which is gathered meanwhile."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """States that a strategy shards, and where it keeps them."""

    sharded: frozenset[State]  # the others are full on each device
    devices: int  # of all nodes together
    offloaded: frozenset[State] = frozenset()  # states whose shards are in CPU memory

    @staticmethod
    def of(strategy: str, devices: int, *, cpu_offload: bool = False) -> Sharding:
        """Read a strategy's name: one that shards nothing is DDP; FSDP offloads all, DeepSpeed the optimiser."""
        sharded = _SHARDED.get(strategy, ())
        offloaded = [state for state in sharded if cpu_offload and (strategy == "fsdp" or state == "optimizer")]
        return Sharding(frozenset(sharded), devices, frozenset(offloaded))

    @property
    def replicates(self) -> bool:
        """Whether every device has the full model and gradients are averaged (DDP)."""
        return not self.sharded and self.devices > 1

    def on_device(self, state: State, size: int) -> int:
        """Bytes on each device of ``size`` bytes of a state; 0 where they are in CPU memory."""
        return 0 if state in self.offloaded else self.per_process(state, size)

    def per_process(self, state: State, size: int) -> int:
        """Bytes of each process, on its device or in CPU memory, rounded up."""
        return -(-size // self.devices) if state in self.sharded else size


@dataclass(frozen=True, slots=True)
class ShardUnits:
    """Bytes of the units that FSDP gathers at once."""

    layer: int  # weights of the largest decoder layer
    root: int  # weights outside the layers: embedding, last norm, output head
    layer_trained: int  # of these, bytes that have a gradient
    root_trained: int

    @staticmethod
    def of(model: PreTrainedModel) -> ShardUnits:
        """Measure the units of a model; one whose layers are unknown is a single unit."""
        layers = [list(layer.parameters()) for layer in decoder_layers(model)]
        in_layers = {id(p) for layer in layers for p in layer}
        outside = [p for p in model.parameters() if id(p) not in in_layers]
        return ShardUnits(
            layer=max(map(_bytes, layers), default=0),
            root=_bytes(outside),
            layer_trained=max((_bytes(layer, trained=True) for layer in layers), default=0),
            root_trained=_bytes(outside, trained=True),
        )


def gathered_bytes(units: ShardUnits, sharding: Sharding) -> int:
    """Bytes of unsharded weights and gradients at the peak, beside the shards.

    The root's weights stay gathered from the forward to the end of the backward pass, and its gradient, which comes
    first, with them; of the layers, :data:`LAYERS_AT_ONCE` have full weights and one a full gradient.
    """
    if sharding.devices == 1:
        return 0
    weights = units.root + LAYERS_AT_ONCE * units.layer if "weights" in sharding.sharded else 0
    gradients = units.root_trained + units.layer_trained if "gradients" in sharding.sharded else 0
    return weights + gradients


def _bytes(parameters: Iterable[nn.Parameter], *, trained: bool = False) -> int:
    return sum(p.nbytes for p in parameters if p.requires_grad or not trained)
