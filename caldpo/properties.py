"""``python -m caldpo.properties``: what each loss does, measured on a table whose optimum is known exactly."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from caldpo.config.main import hydra_entry
from caldpo.theory.properties_settings import agree, read_settings
from caldpo.utils.collector import exempt_from_collection


@hydra_entry("properties", settings="caldpo.theory.properties_settings.PropertiesSettings", records=False, agree=agree)
def main(cfg: DictConfig) -> None:
    """Measure the losses that ``cfg`` names."""
    settings = read_settings(cfg)
    with exempt_from_collection():
        from caldpo.theory.properties_run import measure_losses  # torch loads only for a good configuration

    measure_losses(settings, Path(settings.output or HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    main()
