"""Settings of a measurement of properties. No heavy imports here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from caldpo.config.bounds import Positive, PositiveInt
from caldpo.config.conf_dir import known_losses
from caldpo.config.did_you_mean import suggest
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError

LossName = Annotated[str, Field(description="the name of a loss, an option of loss=")]


@validated
@dataclass(frozen=True)
class PropertiesSettings:
    """Top-level keys of the measurement, which ``conf/properties.yaml`` explains."""

    losses: Literal["all"] | list[LossName]
    beta: Positive
    steps: PositiveInt
    output: str | None


def chosen_losses(settings: PropertiesSettings) -> list[str]:
    """List the names of the losses to measure.

    Raises:
        CaldpoError: there is no such loss.
    """
    known = known_losses()
    if settings.losses == "all":
        return known
    for name in settings.losses:
        if name not in known:
            raise CaldpoError(f"no such loss{suggest(name, known)} (of {', '.join(known)})", key="losses", value=name)
    return list(settings.losses)


def read_settings(cfg: DictConfig) -> PropertiesSettings:
    """Read the top-level keys."""
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    return PropertiesSettings(**{key: value for key, value in values.items() if key != "hydra"})


def agree(cfg: DictConfig) -> None:
    """Refuse a loss that there is not."""
    chosen_losses(read_settings(cfg))
