"""``python -m caldpo.benchmark``: speed and memory on this machine, against TRL or against another build."""

from __future__ import annotations

from omegaconf import DictConfig

from caldpo.bench.benchmark_settings import TRL, read_settings
from caldpo.bench.build_rows import require_rows
from caldpo.config.main import hydra_entry
from caldpo.utils.collector import exempt_from_collection


def agree(cfg: DictConfig) -> None:
    """Refuse settings that contradict each other."""
    settings, _ = read_settings(cfg)
    require_rows(settings)


@hydra_entry("benchmark", settings="caldpo.bench.benchmark_settings.BenchmarkSettings", records=False, agree=agree)
def main(cfg: DictConfig) -> None:
    """Measure the variants of ``cfg``, or the commands of two builds, in turn and print how they compare."""
    # torch loads only for a good configuration
    if cfg.baseline == TRL:
        with exempt_from_collection():
            from caldpo.bench.benchmark_run import benchmark

        benchmark(cfg)
    else:
        from caldpo.bench.build_comparison import compare_builds

        compare_builds(cfg)


if __name__ == "__main__":
    main()
