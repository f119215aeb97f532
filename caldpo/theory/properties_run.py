"""Measure the properties of each loss, and write them as a table."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track

from caldpo.components import build
from caldpo.config.conf_dir import conf_dir
from caldpo.losses.base import PreferenceLoss
from caldpo.theory.measured_properties import measure
from caldpo.theory.properties_settings import PropertiesSettings, chosen_losses
from caldpo.theory.properties_table import page
from caldpo.utils.atomic_io import write_text


def measure_losses(settings: PropertiesSettings, folder: Path) -> None:
    """Write ``properties.csv`` and ``properties.md`` into the folder, and print the table."""
    torch.set_num_threads(1)
    started, rows = time.perf_counter(), []
    for name in track(chosen_losses(settings), "losses", console=Console(stderr=True), transient=True):
        loss = configured_loss(name, settings.beta)
        rows.append({"loss": name, "formula": loss.formula} | asdict(measure(loss, settings.steps)))
    table = pd.DataFrame(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "properties.csv", table.to_csv(index=False, float_format="%.6g"))
    text = page(table, settings.beta, settings.steps, time.perf_counter() - started)
    write_text(folder / "properties.md", text)
    print(text)
    print(f"written: {folder / 'properties.csv'}, {folder / 'properties.md'}")


def configured_loss(name: str, beta: float) -> PreferenceLoss:
    """Build a loss with its yaml's settings, but for ``beta``, where it has one."""
    section: Any = OmegaConf.load(conf_dir() / "loss" / f"{name}.yaml")
    if "beta" in section:
        section.beta = beta
    loss: PreferenceLoss = build(section, "loss")
    return loss
