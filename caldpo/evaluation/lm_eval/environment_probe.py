"""Look up packages of an environment; standard library alone, since other interpreters run this file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import Any


def probe(module: str, distributions: Sequence[str]) -> dict[str, Any]:
    """Locate a package without importing it, and return versions of distributions; None where not installed."""
    spec = importlib.util.find_spec(module)
    folders = spec.submodule_search_locations if spec else None
    return {"folder": next(iter(folders or ()), None), "versions": {name: _version(name) for name in distributions}}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], sys.argv[2:])))
