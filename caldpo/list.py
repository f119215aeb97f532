"""``python -m caldpo.list outputs``: the runs in a folder, the newest first."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from caldpo.config.main import hydra_entry


@hydra_entry("list", positional="folder", settings="caldpo.report.run_listing.list_runs", records=False)
def main(cfg: DictConfig) -> None:
    """List the runs of ``cfg.folder``."""
    from caldpo.report.run_listing import list_runs  # for a good configuration

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    list_runs(**{key: value for key, value in settings.items() if key != "hydra"})


if __name__ == "__main__":
    main()
