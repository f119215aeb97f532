"""``python -m caldpo.estimate model=zephyr``: what ``caldpo.train`` would need with the same overrides."""

from __future__ import annotations

from omegaconf import DictConfig

from caldpo.config.main import hydra_entry
from caldpo.data.source_paths import find_misplaced
from caldpo.utils.collector import exempt_from_collection


@hydra_entry(
    "estimate", settings="caldpo.estimation.estimate_settings.EstimateSettings", records=False, agree=find_misplaced
)
def main(cfg: DictConfig) -> None:
    """Print the estimate of the run that ``cfg`` describes, and write it to ``estimate.json``."""
    with exempt_from_collection():
        from caldpo.estimation.estimate_run import estimate  # torch and transformers only for a good configuration

    estimate(
        cfg,
        sample_pairs=cfg.sample_pairs,
        memory_gib=cfg.memory_gib,
        device_tflops=cfg.device_tflops,
        utilisation=cfg.utilisation,
    )


if __name__ == "__main__":
    main()
