"""Each unit of the package imports lower ones only, and no modules import each other in a circle."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import caldpo

ROOT = Path(caldpo.__file__).parent
# from the lowest: a unit (a package, or a module beside them) may import those of its own line and of lines above it
LAYERS = (
    ("errors",),
    ("utils",),
    ("types", "metric_definitions", "metrics_file"),
    ("metrics", "security"),
    ("config",),
    ("checkpointing",),
    ("distributed",),
    ("losses", "optim", "environments"),
    ("modifiers",),
    ("models",),
    ("data",),
    ("logprobs",),
    ("reference",),
    ("nonfinite", "rollouts"),
    ("step_metrics", "step_ahead", "loggers"),
    ("resume",),
    ("lightning_module",),
    ("trainer_extra",),
    ("callbacks", "lightning_trainer"),
    ("components",),
    ("console", "model_data_checks"),
    ("evaluation",),
    ("run_settings", "generation", "report"),
    ("exporting", "estimation", "sweep_report", "in_process_run"),
    ("replay", "run_record", "theory"),
    ("training_run",),
    ("training_command",),
    ("bench", "studies"),
    ("api",),
    ("train",),
    ("evaluate", "generate", "export", "compare", "list", "estimate", "benchmark", "properties", "study", "cli"),
    ("__main__",),
    ("wandb_workspace",),
)
RANK = {unit: rank for rank, line in enumerate(LAYERS) for unit in line}


def name_of(path: Path) -> str:
    """``caldpo/data/pair.py`` as ``data.pair``; a package's ``__init__`` as the package, the root's as ``''``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imports_of(name: str) -> set[str]:
    """The project's modules that a module imports, wherever in it; not those for annotations alone."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "caldpo":
            package = node.module.removeprefix("caldpo").lstrip(".")
            for alias in node.names:
                inner_name = f"{package}.{alias.name}".lstrip(".")
                found.add(inner_name if inner_name in MODULES else package)
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("caldpo").lstrip(".") for alias in node.names if "caldpo" in alias.name}
    return found & set(MODULES) - {name, ""}


IMPORTS = {name: imports_of(name) for name in MODULES}


def test_every_unit_has_a_layer() -> None:
    assert {name.split(".")[0] for name in MODULES if name} == set(RANK)


def test_imports_go_down() -> None:
    upward = sorted(
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if name and RANK[name.split(".")[0]] <= RANK[other.split(".")[0]] and name.split(".")[0] != other.split(".")[0]
    )
    assert not upward, "\n".join(upward)


def test_no_circle_of_modules() -> None:
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(IMPORTS[name]):
                walk(other, (*trail, name))
            done.add(name)

    for name in sorted(IMPORTS):
        walk(name, ())


def test_each_file_name_is_used_once() -> None:
    names = Counter(path.name for path in MODULES.values() if path.name not in ("__init__.py", "__main__.py"))
    assert not {name: count for name, count in names.items() if count > 1}
