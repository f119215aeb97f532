"""Every module imports by itself; the commands stay light until they train."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

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
        for name in (
            *("train", "evaluate", "generate", "export", "compare", "list"),
            *("estimate", "benchmark", "properties", "cli", "api"),
        )
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


# What neither --help nor a mistake may import: Hydra's own is all that an answer takes, and of the checks pydantic.
REFUSED = (*HEAVY, "filelock", "scipy", "requests", "httpx", "huggingface_hub", "jinja2", "sympy", "psutil")
# Extras and trackers that the run does not use, readers of files that it does not read, and torch's compiler.
UNUSED = ("peft", "bitsandbytes", "deepspeed", "torchao", "trl", "wandb", "openai", "lm_eval", "datasets", "pandas")
UNUSED += ("pyarrow", "sklearn", "networkx", "transformers.optimization", "transformers.trainer_utils")
UNUSED += ("torch._inductor.lowering", "torch._inductor.compile_fx")


def imported_by(arguments: list[str], names: tuple[str, ...], folder: Path) -> tuple[int, list[str]]:
    """Run ``caldpo.train`` in a process of its own; return its exit code and which of the modules it has imported."""
    code = f"""
import sys
from caldpo.train import main
try:
    main({arguments})
    code = 0
except SystemExit as stop:
    code = stop.code
print(code, *[m for m in {names} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    exit_code, *imported = done.stdout.splitlines()[-1].split()
    return int(exit_code), imported


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    assert imported_by(["--help"], REFUSED, tmp_path) == (0, [])


@pytest.mark.parametrize("mistake", ["los=dpo", "loss.bta=0.1", "loss.beta=0.1x", "loss=dpp seed=x", "data=local"])
def test_a_mistake_imports_nothing_heavy(mistake: str, tmp_path: Path) -> None:
    assert imported_by(mistake.split(), REFUSED, tmp_path) == (2, [])


def test_a_step_of_training_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    arguments = ["experiment=tabular", "trainer.max_steps=1", "hydra.run.dir=run"]
    arguments += ["logger=wandb", "logger.wandb.mode=disabled"]
    assert imported_by(arguments, UNUSED, tmp_path) == (0, [])
    assert (tmp_path / "run/metrics.csv").is_file()
