"""``python -m caldpo.compare outputs/SWEEP``: report, table and picture of a sweep's runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from caldpo.api.callable_module import make_callable
from caldpo.config.find_runs import no_folder_error
from caldpo.config.main import hydra_entry
from caldpo.utils.collector import exempt_from_collection

if TYPE_CHECKING:
    from caldpo.api.compare_call import Comparison


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


def function() -> Callable[..., Comparison]:
    """What a call of this module calls: see :mod:`caldpo.api.callable_module`."""
    from caldpo.api.compare_call import compare

    return compare


make_callable(__name__)
if __name__ == "__main__":
    main()
