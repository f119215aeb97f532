"""``python -m caldpo.list outputs``: the runs in a folder, the newest first."""

from __future__ import annotations

import os
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from caldpo.config.main import hydra_entry


@hydra_entry("list", positional="folder", settings="caldpo.report.run_listing.list_runs", records=False)
def main(cfg: DictConfig) -> None:
    """List the runs of ``cfg.folder``."""
    from caldpo.report.run_listing import list_runs  # for a good configuration

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    try:
        list_runs(**{key: value for key, value in settings.items() if key != "hydra"})
        sys.stdout.flush()
    except BrokenPipeError:  # head, or a pager, has seen enough; Python would write what is left when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
