"""What the compared builds read: pairs, the same for both; a fitted model and runs, made by each build itself."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from caldpo.bench.benchmark_data import (
    CORRELATION,
    PROMPT_MEDIAN,
    RESPONSE_MEDIAN,
    SHORTEST,
    SPECIAL,
    SPREAD,
    word_tokenizer,
)
from caldpo.bench.benchmark_settings import BenchmarkSettings
from caldpo.errors import CaldpoError

RunCommand = Callable[[Path, list[str]], None]
"""Runs a command of a build in a folder; raises CaldpoError where it fails."""

FEW_PAIRS = 8  # of the run that the others' figures are compared with: its cost is that of everything but reading
VOCABULARY = 8192  # words of synthetic pairs
CACHE = Path("outputs/cache")  # of every run, from its current folder
TEMPLATE_STEPS = 150  # of the run that the others are copies of, as in the demo
_SEEDS = 20  # runs of a group
_LEFT_OUT = shutil.ignore_patterns("policy", "checkpoints", "samples.jsonl", "*.png", "*.svg")


def write_pairs(settings: BenchmarkSettings, folder: Path) -> dict[str, str]:
    """Write a large and a small file of pairs, synthetic or the rows of the data file with other prompts.

    Raises:
        CaldpoError: a row of the data file is no JSON object with a text as its prompt.
    """
    folder.mkdir(parents=True)
    tokenizer = settings.tokenizer
    if tokenizer is None:
        tokenizer = str(folder / "tokenizer")
        word_tokenizer(VOCABULARY).save_pretrained(tokenizer)
    elif Path(tokenizer).expanduser().exists():
        tokenizer = str(Path(tokenizer).expanduser().absolute())
    file = settings.data_file
    rows = synthetic_rows(settings.seed) if file is None else repeated_rows(Path(file).expanduser())
    places = {"pairs": folder / "pairs.jsonl", "few_pairs": folder / "few_pairs.jsonl"}
    for path, count in ((places["pairs"], settings.read_pairs), (places["few_pairs"], FEW_PAIRS)):
        with path.open("w", encoding="utf-8") as out:
            for _, row in zip(range(count), rows, strict=False):
                out.write(json.dumps(row) + "\n")
    return {name: str(path) for name, path in places.items()} | {"tokenizer": tokenizer}


def synthetic_rows(seed: int) -> Iterator[dict[str, str]]:
    """Draw pairs of words, with the lengths of :func:`caldpo.bench.benchmark_data.synthetic_pairs`, without an end."""
    rng = np.random.default_rng(seed)
    words = np.array([f"w{token}" for token in range(len(SPECIAL), VOCABULARY)])
    while True:
        normal = rng.standard_normal(3)
        normal[2] = CORRELATION * normal[1] + np.sqrt(1 - CORRELATION**2) * normal[2]
        medians = np.array([PROMPT_MEDIAN, RESPONSE_MEDIAN, RESPONSE_MEDIAN])
        lengths = np.maximum(SHORTEST, np.rint(medians * np.exp(SPREAD * normal))).astype(int)
        texts = [" ".join(words[rng.integers(len(words), size=n)]) for n in lengths]
        yield {"prompt": texts[0], "chosen": f" {texts[1]}", "rejected": f" {texts[2]}"}


def repeated_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Repeat the rows of a file of JSON lines without an end, each time with another end of every prompt."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = enumerate(content.decode("utf-8").split("\n"), start=1)
    rows = [_row_of(line, f"{path.name}:{number}") for number, line in lines if line.strip()]
    for number, row in enumerate(cycle(rows)):
        times = number // len(rows)
        yield _replaced(row, row["prompt"], f"{row['prompt']} ({times})") if times else row


def _row_of(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("prompt"), str):
            return row
    except ValueError:
        pass
    raise CaldpoError(
        f"{place} is no JSON object with a text as its prompt, of which more pairs could be made",
        key="data_file",
        remedy="name a file of JSON lines with a column prompt, or leave out the rows read and read_few",
    )


def _replaced(value: Any, text: str, by: str) -> Any:
    """Replace a text wherever it is a whole value, as a prompt is that comes again in each conversation."""
    if isinstance(value, dict):
        return {key: _replaced(inner, text, by) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, text, by) for inner in value]
    return by if value == text else value


def fill_cache(folder: Path, run: RunCommand, steps: int) -> dict[str, str]:
    """Fit the embedded model, which later runs find in their cache, and train the run that others are copies of."""
    folder.mkdir(parents=True)
    run(folder, ["-m", "caldpo.train", "loss=dpo", f"trainer.max_steps={steps}", *_QUIET])
    return {"template": str(folder / "template"), "cache": str(folder / CACHE)}


_QUIET = ("logger=none", "trainer.progress_bar=false", "hydra.run.dir=template")


def copy_runs(template: Path, folder: Path, count: int) -> str:
    """Write ``count`` copies of a run that differ in their seed and in the loss's beta; returns the sweep's folder."""
    for number in range(count):
        copy = folder / f"run_{number}"
        shutil.copytree(template, copy, ignore=_LEFT_OUT)
        seed, beta = number % _SEEDS, round(0.05 * (1 + number // _SEEDS), 2)
        for name in ("config.yaml", ".hydra/config.yaml"):
            text = re.sub(r"(?m)^seed: .*$", f"seed: {seed}", (copy / name).read_text(encoding="utf-8"))
            text = re.sub(r"(?m)^( +beta: ).*$", rf"\g<1>{beta}", text)
            (copy / name).write_text(text, encoding="utf-8")
        overrides = "".join(f"- {text}\n" for text in ("loss=dpo", f"loss.beta={beta}", f"seed={seed}"))
        (copy / ".hydra/overrides.yaml").write_text(overrides, encoding="utf-8")
        _change_json(copy / "summary.json", seed=seed)
    return str(folder)


def lengthen_run(template: Path, folder: Path, rows: int) -> str:
    """Copy a run, its metrics repeated until there are ``rows`` steps; returns the copy's folder."""
    shutil.copytree(template, folder, ignore=_LEFT_OUT)
    path = folder / "metrics.csv"
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    at = header.index("step")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(_numbered(lines, at, rows))
    _change_json(folder / "summary.json", steps=rows)
    return str(folder)


def _numbered(lines: Iterable[list[str]], at: int, rows: int) -> Iterator[list[str]]:
    """Repeat the lines with steps from 1 on."""
    for step, line in zip(range(1, rows + 1), cycle(lines), strict=False):
        yield [*line[:at], str(step), *line[at + 1 :]]


def _change_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | values), encoding="utf-8")
