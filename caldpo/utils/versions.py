"""Versions of the libraries that determine a run's numbers."""

from __future__ import annotations

import platform
from importlib.metadata import version

from caldpo import __version__

LIBRARIES = ("torch", "pytorch-lightning", "transformers", "datasets", "hydra-core", "wandb")


def versions() -> dict[str, str]:
    """Return the versions of caldpo, Python and the libraries that determine a run's numbers."""
    return {"caldpo": __version__, "python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
