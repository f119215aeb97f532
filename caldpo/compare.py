"""``python -m caldpo.compare outputs/SWEEP``: report, table and picture of a sweep's runs."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from caldpo.config.find_runs import no_folder_error
from caldpo.config.main import hydra_entry
from caldpo.utils.collector import exempt_from_collection


@hydra_entry(
    "compare",
    positional="sweep",
    several=True,
    absent=no_folder_error,
    settings="caldpo.report.comparison.compare_runs",
    records=False,
)
def main(cfg: DictConfig) -> None:
    """Compare the runs of ``cfg.sweep``."""
    with exempt_from_collection():
        from caldpo.report.comparison import compare_runs  # matplotlib only for a good configuration

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    compare_runs(**{key: value for key, value in settings.items() if key != "hydra"})


if __name__ == "__main__":
    main()
