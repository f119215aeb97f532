"""The objects that a run is made of, from the sections of its configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from caldpo.models.adapter_quantized import check_quantized
from caldpo.numbers.overflow import check_overflow
from caldpo.reference.adapter import check_adapter


def build_parts(cfg: DictConfig, sections: Iterable[str]) -> dict[str, Any]:
    """The object of each of these sections, by the section's name."""
    parts = {name: instantiate(cfg[name], _convert_="all") for name in sections}
    if "adapter" in parts and "model" in parts:  # the model under the adapter, as everything else sees it
        parts["model"] = parts["adapter"].base(parts["model"])
    return parts


def check_parts(parts: dict[str, Any]) -> None:
    """Look as far as one can before data and weights are there.

    Raises:
        CaldpoError: a part cannot be had, or parts do not go together.
    """
    trainer = parts["trainer"]
    replicas = trainer.world_size > 1 and not trainer.divides_optimizer
    parts["optim"].check(trainer.precision, divided=trainer.divides_optimizer, replicas=replicas)
    parts["adapter"].check()
    parts["reference"].check()
    check_adapter(parts["reference"], parts["adapter"])
    check_quantized(parts["adapter"], divided=trainer.divides_optimizer)
    check_overflow(parts)
