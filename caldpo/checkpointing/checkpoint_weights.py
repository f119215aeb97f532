"""Select the weights a checkpoint holds: tied tensors once, and without the frozen base of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from caldpo.errors import CaldpoError

_LOSS = "loss."  # before the names of the loss's buffers in the training module


def deduplicate_tied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Keep each tied tensor under its first name, since safetensors stores no shared memory.

    Returns:
        The tensors, contiguous and without shared storage, and each further name with the name that is kept.
    """
    weights: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first_names: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, value in state.items():
        tensor = value.detach()
        view = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and view in first_names:
            ties[name] = first_names[view]
            continue
        first_names[view] = name
        storage = tensor.untyped_storage().data_ptr()
        weights[name] = tensor.clone() if storage in storages else tensor.contiguous()
        storages.add(storage)
    return weights, ties


def tensor_bytes(value: Any) -> int:
    """Sum the bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def frozen_names(module: nn.Module) -> set[str]:
    """Name the entries of a state dict that training never changes; empty where every parameter is trained.

    With frozen parameters these are all entries but the trainable ones: buffers then belong to the frozen base, except
    those of the loss, which remembers the run in them.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    trainable = {name for name, value in parameters.items() if value.requires_grad}
    if len(trainable) == len(parameters):
        return set()
    return {name for name in module.state_dict() if not name.startswith(_LOSS)} - trainable


def drop_frozen(state: dict[str, Tensor], module: nn.Module) -> None:
    """Remove the frozen entries from a state dict that is about to be saved."""
    for name in frozen_names(module) & state.keys():
        del state[name]


def add_frozen(state: dict[str, Tensor], module: nn.Module) -> None:
    """Add the module's own frozen entries to a loaded state dict, so that it can be loaded strictly.

    Raises:
        CaldpoError: the state dict has other trainable weights than the module.
    """
    own = module.state_dict()
    frozen = frozen_names(module)
    missing, unexpected = own.keys() - frozen - state.keys(), state.keys() - own.keys()
    if missing or unexpected:
        examples = ", ".join(sorted(missing | unexpected)[:3])
        raise CaldpoError(
            f"the checkpoint is of another model: it lacks {len(missing)} of the policy's trainable weights and has"
            f" {len(unexpected)} that the policy does not have ({examples}, ...)",
            remedy="resume with the model and adapter settings the run began with",
        )
    for name in frozen - state.keys():
        state[name] = own[name]
