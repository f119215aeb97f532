"""What is timed of two builds of this package: one table of commands, their figures and targets.

A target is a ratio to the other build, a multiple of the imports alone, or a value, and was set for commit 724219b as
the other build.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from caldpo.bench.benchmark_settings import TRL, BenchmarkSettings
from caldpo.config.did_you_mean import suggest_known
from caldpo.errors import CaldpoError

Figures = Mapping[str, float]
CPU, WALL, MEMORY = "CPU s", "wall s", "peak MiB"  # of a command's process tree
SPEED, LESS_MEMORY, TRL_SPEED = "x speed of TRL", "x less memory than TRL", "x speed of TRL, TRL's best"
FIRST_RUN, OF_ESTIMATE = "x speed of TRL, first run with its reference", "measured peak / estimate"
OUT = "{out}"  # in a command: the folder of this run


@dataclass(frozen=True)
class Target:
    """What a figure of this build is to be."""

    limit: float
    of: Literal["ratio", "imports", "value"] = "ratio"  # to the other build; to the row imports; itself
    sense: Literal["at most", "at least", "within"] = "at most"  # within: a factor of 1 + limit, both ways

    def reached(self, quantity: float) -> bool:
        """Whether the compared quantity meets the target."""
        if self.sense == "within":
            return quantity > 0 and abs(math.log(quantity)) <= math.log1p(self.limit)
        return quantity <= self.limit if self.sense == "at most" else quantity >= self.limit

    def __str__(self) -> str:
        of = {"ratio": "", "imports": " x imports", "value": ""}[self.of]
        return {"at most": "≤ ", "at least": "≥ ", "within": "1 ± "}[self.sense] + f"{self.limit:.3g}{of}"


@dataclass(frozen=True)
class BuildRow:
    """A command, or several one after the other, and what it needs.

    Arguments are those of Python, with the names of :func:`arguments` in braces.
    """

    title: str
    commands: tuple[tuple[str, ...], ...]
    targets: Mapping[str, Target] = field(default_factory=dict)  # by figure
    exit_code: int = 0
    needs: tuple[str, ...] = ()  # inputs, see caldpo.bench.build_inputs.INPUTS
    beyond: str | None = None  # a row whose figures are taken away
    also: tuple[str, ...] = ()  # rows that a target refers to
    read: Callable[[Path], Figures] | None = None  # figures in the run's folder, in place of the tree's


def trl_figures(folder: Path) -> Figures:
    """Read a benchmark's report: this package's default against TRL's."""
    rows = {row["name"]: row for row in json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))["rows"]}
    trl, best, own = (rows[name] for name in ("trl", "trl_low_memory", "caldpo"))

    def first_run(row: Mapping[str, float]) -> float:
        return 1 / row["pairs_per_second"][0] + (row["reference_seconds_per_pair"] or 0.0)  # type: ignore[index]

    estimated = own["estimated_bytes"]
    return {
        SPEED: own["speed"],
        LESS_MEMORY: own["memory"],
        FIRST_RUN: first_run(trl) / first_run(own),
        TRL_SPEED: best["speed"],
        **({OF_ESTIMATE: own["peak_bytes"] / estimated} if estimated else {}),
    }


def _trl(model: str, speed: float, memory: float) -> BuildRow:
    command = (
        *("-m", "caldpo.benchmark", f"benchmark_model={model}", "variants=[trl,trl_low_memory,caldpo]", "repeats=1"),
        *("steps={steps}", "warmup_steps={warmup_steps}", "device={device}", "{data}", f"hydra.run.dir={OUT}"),
    )
    targets = {SPEED: (speed, "at least"), LESS_MEMORY: (memory, "at least"), OF_ESTIMATE: (0.15, "within")}
    if model == "vocabulary":
        targets |= {FIRST_RUN: (6.0, "at least")}
    if model == "body":
        targets |= {FIRST_RUN: (4.0, "at least")}
    return BuildRow(
        f"training against TRL, {model}",
        (command,),
        {name: Target(limit, "value", sense) for name, (limit, sense) in targets.items()},  # type: ignore[arg-type]
        read=trl_figures,
    )


def _train(*overrides: str) -> tuple[str, ...]:
    return ("-m", "caldpo.train", *overrides, "logger=none", "trainer.progress_bar=false", f"hydra.run.dir={OUT}")


def _reading(pairs: str) -> tuple[str, ...]:
    local = (f"data.train={pairs}", "data.test={few_pairs}", "data.max_length=1024", "data.max_prompt_length=512")
    # a reference-free loss: its reference is computed for the few held-out pairs alone
    return _train(
        *("loss=cpo", "model=random", "model.tokenizer={tokenizer}", "data=local", *local),
        *("data.on_degenerate=keep", "data.on_shared_prompts=keep", "data.on_invalid=skip"),
        *("data.on_reversed_scores=keep", "data.preview_pairs=0"),
        *("trainer.max_steps=1", "callbacks.samples.prompts=0", "callbacks.oracle.prompts=0", "export=false"),
    )


ROWS: dict[str, BuildRow] = {
    "help": BuildRow("train --help", (("-m", "caldpo.train", "--help"),), {CPU: Target(0.5 / 3.0)}),
    "typo": BuildRow("train los=dpo, a typo", (("-m", "caldpo.train", "los=dpo"),), {CPU: Target(0.7 / 1.9)}, 2),
    "imports": BuildRow(
        "import torch, transformers, pytorch_lightning",
        (("-c", "import torch, transformers, pytorch_lightning"),),
    ),
    "first_step": BuildRow(
        "train trainer.max_steps=1",
        (("-m", "caldpo.train", "trainer.max_steps=1", f"hydra.run.dir={OUT}"),),
        {CPU: Target(1.15, "imports")},
        needs=("cache",),
        also=("imports",),
    ),
    "steps": BuildRow("train loss=dpo, 60 steps", (_train("loss=dpo", "trainer.max_steps=60"),), needs=("cache",)),
    "sweep": BuildRow(
        "make demo",
        (
            ("-m", "caldpo.train", "-m", "experiment=demo", f"hydra.sweep.dir={OUT}/sweep", "{sweep}"),
            ("-m", "caldpo.compare", f"sweep={OUT}/sweep"),
        ),
        {CPU: Target(0.7)},
        needs=("cache",),
    ),
    "read_few": BuildRow("train on a few pairs of a file", (_reading("{few_pairs}"),), needs=("pairs",)),
    "read": BuildRow(
        "the same on many pairs, beyond that: read, check, render, tokenise",
        (_reading("{pairs}"),),
        {WALL: Target(0.4), MEMORY: Target(0.5)},
        needs=("pairs",),
        beyond="read_few",
    ),
    "compare": BuildRow(
        "compare, many runs",
        (("-m", "caldpo.compare", "sweep={runs}"),),
        {CPU: Target(0.25), MEMORY: Target(0.4)},
        needs=("cache", "runs"),
    ),
    "curves": BuildRow(
        "compare, one run with a long metrics.csv",
        (("-m", "caldpo.compare", "sweep={curves}"),),
        {CPU: Target(0.25), MEMORY: Target(0.4)},
        needs=("cache", "curves"),
    ),
    "trl_vocabulary": _trl("vocabulary", 7.5, 7.0),
    "trl_body": _trl("body", 5.5, 3.0),
    "tests": BuildRow(
        "the fast tests of a checkout",
        (("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "--rootdir={root}", "{root}/tests"),),
        {CPU: Target(0.5), WALL: Target(480.0, "value")},
    ),
}
"""By the names of the key ``rows``, in the order in which they run."""

UNASKED = tuple(name for name in ROWS if name != "tests")
"""Rows where ``rows`` is null: a wheel has no tests, and a checkout's are not those of another."""


def require_rows(settings: BenchmarkSettings) -> None:
    """Refuse rows that do not exist, and a baseline that holds no package; nothing to refuse where TRL is it.

    Raises:
        CaldpoError: with the key and the remedy.
    """
    if settings.baseline == TRL:
        return
    root = Path(settings.baseline).expanduser()
    if not (root / "caldpo" / "__init__.py").is_file():
        raise CaldpoError(
            "holds no caldpo/__init__.py",
            key="baseline",
            value=settings.baseline,
            remedy="name the folder of another checkout, or of an unpacked wheel; trl compares training with TRL",
        )
    for name in settings.rows or ():
        if name not in ROWS:
            near = suggest_known(name, ROWS)
            message = f"there is no row {name}{near}: must be among {', '.join(ROWS)}"
            raise CaldpoError(message, key="rows", value=settings.rows)


def selected(names: list[str] | None) -> dict[str, BuildRow]:
    """Select rows, with those that they refer to; None: those of ``UNASKED``."""
    wanted = set(UNASKED if names is None else names)
    for name in list(wanted):
        row = ROWS[name]
        wanted |= {*row.also, *filter(None, [row.beyond])}
    return {name: row for name, row in ROWS.items() if name in wanted}


def arguments(command: tuple[str, ...], places: Mapping[str, str], settings: BenchmarkSettings) -> list[str]:
    """Fill in a command: ``places`` by name, ``{sweep}`` and ``{data}`` as the arguments of the settings."""
    model = ("benchmark_model.max_length=1024", "benchmark_model.max_prompt_length=512")
    numbers = {name: getattr(settings, name) for name in ("steps", "warmup_steps", "device")}
    filled: list[str] = []
    for text in command:
        if text == "{sweep}":
            filled += settings.sweep
        elif text != "{data}":
            filled.append(text.format(**places, **numbers))
        elif settings.data_file is not None:
            filled += [f"data_file={places['data_file']}", f"tokenizer={places['tokenizer']}", *model]
    return filled


def renamed(command: list[str], names: Mapping[str, str]) -> list[str]:
    """Write keys and groups by the names that another build has for them: ``benchmark_model.x=1`` as ``shape.x=1``."""

    def rename(text: str) -> str:
        key, equals, value = text.partition("=")
        for name, other in names.items():
            if equals and (key == name or key.startswith(f"{name}.")):
                return other + key[len(name) :] + equals + value
        return text

    return list(map(rename, command))
