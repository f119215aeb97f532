"""Of a policy with frozen weights (an adapter on its base) a checkpoint holds the trainable ones alone."""

from __future__ import annotations

from torch import Tensor, nn

from caldpo.errors import CaldpoError


def frozen_names(module: nn.Module) -> set[str]:
    """Names in the state of what training never changes; empty where every weight is trained.

    With frozen weights these are all but the trainable ones: buffers then belong to the frozen base.
    """
    named = dict(module.named_parameters(remove_duplicate=False))
    trained = {name for name, value in named.items() if value.requires_grad}
    return set() if len(trained) == len(named) else set(module.state_dict()) - trained


def drop_frozen(state: dict[str, Tensor], module: nn.Module) -> None:
    """Take what is never trained out of a state that is going to be saved."""
    for name in frozen_names(module) & state.keys():
        del state[name]


def add_frozen(state: dict[str, Tensor], module: nn.Module) -> None:
    """Put the module's own frozen weights into a loaded state, so that it can be held against the module in full.

    Raises:
        CaldpoError: the state has other trainable weights than the module.
    """
    own = module.state_dict()
    frozen = frozen_names(module)
    missing, strange = own.keys() - frozen - state.keys(), state.keys() - own.keys()
    if missing or strange:
        named = ", ".join(sorted(missing | strange)[:3])
        raise CaldpoError(
            f"the checkpoint is of another model: it lacks {len(missing)} of the policy's trainable weights and has"
            f" {len(strange)} that the policy does not have ({named}, ...)",
            remedy="resume with the model and adapter settings the run began with",
        )
    for name in frozen - state.keys():
        state[name] = own[name]
