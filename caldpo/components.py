"""The objects that a run is made of, from the sections of its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import Callback

from caldpo.errors import CaldpoError
from caldpo.models.qlora import check_quantized
from caldpo.nonfinite.overflow_check import check_overflow
from caldpo.reference.disabled_adapter import check_adapter

_CALL = re.compile(r"(?:missing \d+ required|unexpected keyword|got multiple values|takes \d+ positional)")


def build_components(cfg: DictConfig, sections: Iterable[str]) -> dict[str, Any]:
    """The object of each of these sections, by the section's name."""
    parts = {name: build(cfg[name], name) for name in sections}
    if "callbacks" in parts:  # null takes one out
        parts["callbacks"] = {name: part for name, part in parts["callbacks"].items() if part is not None}
    if "adapter" in parts and "model" in parts:  # the model under the adapter, as everything else sees it
        parts["model"] = parts["adapter"].base(parts["model"])
    return parts


def build(section: DictConfig, key: str) -> Any:
    """The object, or objects by name, of a section.

    Args:
        section: of a configuration.
        key: of the section.

    Raises:
        CaldpoError: a class cannot be imported, or does not take the section's keys.
        InstantiationException: from what went wrong inside a constructor.
    """
    try:
        return instantiate(section, _convert_="all")
    except InstantiationException as error:
        said, _, place = str(error).partition("full_key: ")
        place, target = place.strip() or key, re.search(r"target,? (?:got )?'([^']*)'", said)
        cause = error.__cause__
        named = target[1] if target else "?"
        if "Error locating target" in said or "Expected a callable" in said:
            why = " ".join(str(cause).split())[:200] if cause is not None else "it is no class or function"
            raise CaldpoError(
                f"cannot be imported ({why})",
                key=f"{place}._target_",
                value=named,
                remedy="name a class as MODULE.CLASS, of a package that is installed here",
            ) from error
        if isinstance(cause, TypeError) and _CALL.search(str(cause)):
            raise CaldpoError(
                f"{named} does not take these keys: {cause}",
                key=place,
                remedy="add the key that is missing, or take the unknown one out",
            ) from error
        raise


def check_components(parts: dict[str, Any]) -> None:
    """Look as far as one can before data and weights are there.

    Raises:
        CaldpoError: a part cannot be had, or parts do not go together.
    """
    for name, callback in parts.get("callbacks", {}).items():  # a replay has none
        if not isinstance(callback, Callback):
            raise CaldpoError(
                f"builds {type(callback).__name__}, which is no callback of Lightning",
                key=f"callbacks.{name}._target_",
                remedy="name a subclass of pytorch_lightning.Callback",
            )
    trainer = parts["trainer"]
    replicas = trainer.world_size > 1 and not trainer.divides_optimizer
    parts["optim"].check(trainer.precision, sharded=trainer.divides_optimizer, replicas=replicas)
    parts["adapter"].check()
    parts["reference"].check()
    check_adapter(parts["reference"], parts["adapter"])
    check_quantized(parts["adapter"], sharded=trainer.divides_optimizer)
    check_overflow(parts)
