"""``python -m caldpo.compare outputs/SWEEP``: report, table and picture of a sweep's runs."""

from __future__ import annotations

from omegaconf import DictConfig

from caldpo.compare.discover import no_folder
from caldpo.config.entry import hydra_entry


@hydra_entry(
    "compare",
    positional="sweep",
    several=True,
    absent=no_folder,
    settings="caldpo.compare.report.compare_runs",
    records=False,
)
def main(cfg: DictConfig) -> None:
    """Compare the runs of ``cfg.sweep``."""
    from caldpo.compare.report import compare  # matplotlib loads only for a good configuration

    compare(cfg)


if __name__ == "__main__":
    main()
