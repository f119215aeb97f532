"""caldpo: an exact, cheap and readable comparison of offline preference-alignment losses.

From Python: ``from caldpo import compose, train`` and ``train(compose(["loss=dpo", "seed=1"])).metrics``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caldpo.api import TrainingResult, compose

__all__ = ["TrainingResult", "__version__", "compose", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import an exported name at its first use: the package itself imports nothing."""
    import importlib

    if name in ("TrainingResult", "compose"):
        return getattr(importlib.import_module("caldpo.api"), name)
    if name == "train":  # the command's module, which can be called
        return importlib.import_module("caldpo.train")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
