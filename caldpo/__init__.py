"""caldpo: an exact, cheap and readable comparison of offline preference-alignment losses.

From Python: ``caldpo.fit("FOLDER", pairs, loss="cal_dpo").metrics``; ``docs/python_api.md`` has every call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caldpo.api.compare_call import Comparison, compare
    from caldpo.api.evaluate_call import evaluate
    from caldpo.api.fit_call import fit
    from caldpo.api.log_ratio_frame import log_ratios
    from caldpo.api.loss_by_name import build_loss
    from caldpo.api.tokenized_rows import tokenize
    from caldpo.api.train_call import compose, train
    from caldpo.api.trained_run import Run
    from caldpo.config.conf_dir import conf_dir
    from caldpo.data.collate import collate
    from caldpo.errors import CaldpoError
    from caldpo.lightning_module import PreferenceModule
    from caldpo.types import LossOutput, PairLogps

__version__ = "0.1.0"
# Where each name is. `evaluate`, `compare` and `train` are modules, the commands, which can be called.
_PLACES = {
    "CaldpoError": "caldpo.errors",
    "Comparison": "caldpo.api.compare_call",
    "LossOutput": "caldpo.types",
    "PairLogps": "caldpo.types",
    "PreferenceModule": "caldpo.lightning_module",
    "Run": "caldpo.api.trained_run",
    "build_loss": "caldpo.api.loss_by_name",
    "collate": "caldpo.data.collate",
    "compare": "caldpo",
    "compose": "caldpo.api.train_call",
    "conf_dir": "caldpo.config.conf_dir",
    "evaluate": "caldpo",
    "fit": "caldpo.api.fit_call",
    "log_ratios": "caldpo.api.log_ratio_frame",
    "tokenize": "caldpo.api.tokenized_rows",
    "train": "caldpo",
}
__all__ = [
    "CaldpoError",
    "Comparison",
    "LossOutput",
    "PairLogps",
    "PreferenceModule",
    "Run",
    "__version__",
    "build_loss",
    "collate",
    "compare",
    "compose",
    "conf_dir",
    "evaluate",
    "fit",
    "log_ratios",
    "tokenize",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import an exported name at its first use: the package itself imports nothing."""
    import importlib

    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return (
        importlib.import_module(f"caldpo.{name}")
        if place == "caldpo"
        else getattr(importlib.import_module(place), name)
    )


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
