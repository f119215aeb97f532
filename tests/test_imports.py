"""Every module imports by itself; the commands stay light until they train."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import caldpo

MODULES = [m.name for m in pkgutil.walk_packages(caldpo.__path__, "caldpo.") if not m.name.endswith("__main__")]
HEAVY = ("torch", "transformers", "datasets", "pytorch_lightning", "wandb", "matplotlib", "pandas", "numpy", "rich")


@pytest.mark.parametrize("name", MODULES)
def test_module_imports(name: str) -> None:
    assert importlib.import_module(name).__doc__, f"{name} says nothing about itself"


@pytest.mark.parametrize(
    "module",
    [
        f"caldpo.{name}"
        for name in ("train", "evaluate", "generate", "export", "compare", "estimate", "benchmark", "cli", "api")
    ],
)
def test_commands_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_runs_a_policy_imports_no_extra_that_it_does_not_use() -> None:
    """PEFT brings bitsandbytes along: more than a second, and 60 MiB."""
    names = "caldpo.evaluation.evaluation_run, caldpo.exporting.export_run, caldpo.generation.generation_run"
    code = f"import sys, {names}; print(*[m for m in ('peft', 'bitsandbytes', 'deepspeed') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
