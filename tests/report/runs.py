"""Writes run folders as training leaves them, with figures that the tests choose."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Rows = Sequence[Mapping[str, float]]


def write_run(
    folder: Path,
    loss: str = "dpo",
    seed: int = 0,
    *,
    rows: Rows | None = None,
    metrics: Mapping[str, float | None] | None = None,
    status: str | None = "finished",
    error: str | None = None,
    loss_keys: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    job: int | None = None,
    reward_beta: float = 0.1,
    summary: Mapping[str, Any] | None = None,
    hydra: bool = True,
    evaluation: Mapping[str, Any] | None = None,
) -> Path:
    """A run folder. ``rows`` None: no metrics.csv. ``status`` None: no summary.json.

    ``evaluation`` are the contents of ``evaluation/*.json`` by suite, see ``tests.report.results``.
    """
    folder.mkdir(parents=True)
    section = {"_target_": f"caldpo.losses.{loss}.Loss", **(loss_keys or {})}
    plain = {
        "name": "train",
        "seed": seed,
        "loss": section,
        "trainer": {"max_steps": 20, "output": str(folder)},
        "data": {"seed": seed, "micro_batch_size": 4},
        **(config or {}),
    }
    composed = json.loads(json.dumps(plain))
    composed["trainer"]["output"] = "${hydra:runtime.output_dir}"
    composed["data"]["seed"] = "${seed}"
    composed["reward_beta"] = "${oc.select:loss.beta,0.1}"
    resolved = {"loss_name": loss, **plain, "reward_beta": reward_beta}
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved))
    if hydra:
        choices = {"loss": loss, "model": "tiny", "data": "reviews"}
        _yaml(folder / ".hydra/config.yaml", composed)
        _yaml(folder / ".hydra/overrides.yaml", [f"loss={loss}", f"seed={seed}", *overrides])
        _yaml(folder / ".hydra/hydra.yaml", {"hydra": {"job": {"num": job}, "runtime": {"choices": choices}}})
    if rows is not None:
        write_metrics(folder / "metrics.csv", rows)
    if status is not None:
        report = {
            "status": status,
            "error": error,
            "loss_name": loss,
            "seed": seed,
            "metrics": dict(metrics or {}),
            "wall_seconds": 10.0 + seed,
            "peak_memory_bytes": 2**30,
            "steps": max((int(row["step"]) for row in rows or ()), default=20),
            "versions": {"python": "3.11.9", "torch": "2.13.0"},
            "data": {"train": {"pairs": 1600}, "test": {"pairs": 256}},
            **(summary or {}),
        }
        (folder / "summary.json").write_text(json.dumps(report))
    for suite, content in (evaluation or {}).items():
        (folder / "evaluation").mkdir(exist_ok=True)
        (folder / "evaluation" / f"{suite}.json").write_text(json.dumps(content))
    return folder


def write_metrics(path: Path, rows: Rows) -> None:
    """A metrics.csv as Lightning's CSVLogger writes it: a column per name, empty where not logged."""
    names = sorted({name for row in rows for name in row})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def held_out(step: int, chosen: float, rejected: float, *, beta: float = 0.1, **others: float) -> dict[str, float]:
    """A validation row: log-ratios in nats, and what follows from them."""
    values = {
        "log_ratios/chosen": chosen,
        "log_ratios/rejected": rejected,
        "rewards/chosen": beta * chosen,
        "rewards/rejected": beta * rejected,
        "rewards/margins": beta * (chosen - rejected),
        "rewards/accuracies": 0.5 if step == 0 else 0.9,
        "displacement": 0.0 if step == 0 else 0.25,
        **others,
    }
    return {"step": step, **{f"val/{name}": value for name, value in values.items()}}


def finals(*rows: Mapping[str, float], **others: float | None) -> dict[str, float | None]:
    """The summary's metrics: the last row's, and others under their logged names (``oracle__kl``)."""
    last = {name: value for name, value in rows[-1].items() if name != "step"}
    return {**last, **{name.replace("__", "/"): value for name, value in others.items()}}


def _yaml(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content))


def table(report, heading):
    """The tables of a section, not of those below it, as rows by their first cell."""
    section = re.split(r"\n##+ ", report.split(f"## {heading}\n")[1])[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    header, body = cells[0], cells[2:]
    return {row[0].strip("`"): dict(zip(header, row, strict=True)) for row in body}
