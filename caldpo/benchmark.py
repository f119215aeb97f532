"""``python -m caldpo.benchmark``: speed, memory and agreement with TRL on this machine."""

from __future__ import annotations

from omegaconf import DictConfig

from caldpo.bench.benchmark_settings import read_settings
from caldpo.config.main import hydra_entry
from caldpo.utils.collector import exempt_from_collection


def agree(cfg: DictConfig) -> None:
    """Refuse settings that contradict each other."""
    read_settings(cfg)


@hydra_entry("benchmark", settings="caldpo.bench.benchmark_settings.BenchmarkSettings", records=False, agree=agree)
def main(cfg: DictConfig) -> None:
    """Measure the variants of ``cfg`` in turn and print how they compare."""
    with exempt_from_collection():
        from caldpo.bench.benchmark_run import benchmark  # torch only for a good configuration

    benchmark(cfg)


if __name__ == "__main__":
    main()
