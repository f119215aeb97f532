"""``.hydra/`` of a run's folder: its configuration, Hydra's own, and the overrides, written by the one who may.

Hydra would write them before anybody is asked, over those of a run that lies there, and with the secrets in them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from caldpo.security.secrets import redact
from caldpo.utils.atomic_io import write_text

FOLDER = ".hydra"
NOT_BY_HYDRA = "hydra.output_subdir=null"  # override under which Hydra leaves it to us


def keep_command(cfg: DictConfig, folder: Path) -> None:
    """Write the configuration without interpolations resolved and without secrets, as Hydra names its files.

    Args:
        cfg: of the run.
        folder: the run's.
    """
    hydra = HydraConfig.get()
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    contents: dict[str, Any] = {
        "config.yaml": OmegaConf.to_container(cfg, resolve=False),
        "hydra.yaml": {"hydra": OmegaConf.to_container(hydra, resolve=False, enum_to_str=True)},
        "overrides.yaml": list(hydra.overrides.task),
    }
    for name, content in contents.items():
        write_text(place / name, OmegaConf.to_yaml(OmegaConf.create(redact(content))))
