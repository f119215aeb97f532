"""Write the model card of a run from the run's own files, by the template ``model_card.md.j2``.

Nothing of the machine is in a card: paths are cut to their last part, and secrets are masked.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from caldpo.config.run_lifecycle import FINISHED
from caldpo.report import shown_metrics
from caldpo.report.escaping import Markdown, code, command, plain, render
from caldpo.report.evaluation_results import has_interval
from caldpo.report.read_runs import read_run
from caldpo.report.run_files import Run, as_float
from caldpo.report.table_cells import markdown_table
from caldpo.security.secrets import redact_text
from caldpo.utils.atomic_io import write_text
from caldpo.utils.text_format import number, with_interval
from caldpo.utils.yaml_io import flatten

CARD, PICTURE = "README.md", "reward_dynamics.png"
TEMPLATE = Path(__file__).with_name("model_card.md.j2")
_DPI = 90
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_PATH = re.compile(r"(?:file://|(?<![\w./\\:>)]))~?/(?:[^\s/'\"`,;:|<>()\[\]{}]+/)+(?=[^\s/'\"`,;:|<>()\[\]{}])")
_ARXIV = re.compile(r"arXiv:?\s+(\d{4}\.\d{4,5})", re.IGNORECASE)
_URL = re.compile(r"https?://[^\s<>]+")
_SHOWN = ("loss", "optim", "adapter", "reference", "trainer", "model", "data", "reward_beta", "layout", "seed")
_NO_SETTING = re.compile(
    r"trainer\.(progress_bar|metrics_sync_every)|.*\.(cache|_partial_|_convert_)|data\.num_workers"
)


@dataclass(frozen=True)
class Exported:
    """The weights that a card is about."""

    step: int | None  # optimiser steps that they have seen; None where unknown
    is_end: bool  # whether it is the run's last step
    adapter: bool  # whether they are an adapter only
    merged: bool = False  # whether an adapter was merged into them


def write_card(run_dir: Path, path: Path, what: Exported, *, picture: bool) -> None:
    """Write the card of the run in ``run_dir``, and beside it a picture if one is wanted and the run has curves.

    Raises:
        OSError: a file cannot be written.
    """
    run = read_run(run_dir, run_dir.parent)
    picture = picture and bool(shown_metrics.CHOSEN.curve(run.curves))
    if picture:
        _draw(run, path.with_name(PICTURE))
    write_text(path, card(run, what, picture=picture))


def _draw(run: Run, path: Path) -> None:
    from caldpo.report.comparison_facts import headline
    from caldpo.report.dynamics_plot import reward_dynamics
    from caldpo.report.grouping import group_runs
    from caldpo.report.plot_style import save

    # a run that was stopped has curves, too; the card says that it was stopped
    groups = group_runs([replace(run, status=FINISHED)])
    save(reward_dynamics(groups, without_paths(headline(groups)), "range"), path, _DPI)


def card(run: Run, what: Exported, *, picture: bool) -> str:
    """Fill the card: Markdown with its front matter."""
    base, data_sets = published_base(run.resolved, run.summary), published_data(run.resolved)
    typed = [str(text) for text in run.summary.get("overrides") or run.overrides]
    overrides = [text for text in typed if not text.startswith(("resume=", "hydra."))]
    versions, data = run.summary.get("versions"), run.summary.get("data")
    text = render(
        TEMPLATE,
        front_matter=_front_matter(run, what, base, data_sets),
        what=what,
        run=run,
        base=None if base is None else Markdown(base),  # only letters, digits and - _ . /
        extends_merged_adapter=_extends_merged_adapter(run.resolved),
        papers=citations(str(run.resolved.get("loss._target_", ""))),
        data=data if isinstance(data, Mapping) else {},
        flatten=flatten,
        data_sets=data_sets,
        held_out=_held_out(run, what),
        picture=PICTURE if picture else None,
        suites=list(_evaluations(run)) if what.is_end else [],  # they measured the run's end
        settings=markdown_table(["key", "value"], _settings(run), text_columns=2),
        train=command(["python", "-m", "caldpo.train", *overrides]),
        versions=[f"{name} {value}" for name, value in versions.items()] if isinstance(versions, Mapping) else [],
        tracking=tracking(run.summary),
    )
    return without_paths(redact_text(text), run.folder)


def published_base(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str | None:
    """Return the hub id of the model that training started from; None of a folder, or of an embedded model.

    A folder that is no longer there may look like an id, so the run's summary decides: of the hub it has the commit.
    The configuration may be nested or flat.
    """
    config = flatten(config)
    path, policy = config.get("model.path"), summary.get("policy")
    if not _is_published(path) or _extends_merged_adapter(config):
        return None
    return path if not isinstance(policy, str) or f"{path}@" in policy else None


def published_data(config: Mapping[str, Any]) -> list[str]:
    """List the hub ids of the data sets, without repeats."""
    paths = [v for k, v in flatten(config).items() if k.startswith("data.") and k.endswith(".path")]
    return list(dict.fromkeys(path for path in paths if _is_published(path) and "/" in path))


def _is_published(path: Any) -> bool:
    return isinstance(path, str) and _HUB_ID.fullmatch(path) is not None and not Path(path).exists()


def citations(target: str) -> list[str]:
    """List the arXiv numbers in the module docstring of a loss (its class's dotted name); none outside caldpo."""
    module = target.rpartition(".")[0]
    if not re.fullmatch(r"caldpo\.losses\.\w+", module):
        return []
    try:
        text = importlib.import_module(module).__doc__ or ""
    except ImportError:
        return []
    return list(dict.fromkeys(_ARXIV.findall(text)))


def tracking(summary: Mapping[str, Any]) -> Markdown | None:
    """Return the run's address at W&B, or how whoever has the run's folder uploads it; None without W&B."""
    if isinstance(url := summary.get("tracker_url"), str):
        return Markdown(f"W&B: <{url}>") if _URL.fullmatch(url) else Markdown(f"W&B: {plain(url)}")
    upload = summary.get("upload")
    if not isinstance(upload, str) or not upload:
        return None
    sync = code(f"wandb sync wandb/{Path(upload.split()[-1]).name}")
    return Markdown(f"W&B: kept offline; from the run's folder, {sync}")


def without_paths(text: str, *folders: Path) -> str:
    """Cut paths from the root or from home to their last part; addresses of the web stay.

    ``folders`` are cut whatever characters their names hold.
    """
    for folder in (*folders, *(f.resolve() for f in folders)):
        if not folder.is_absolute():
            continue
        for write in (str, plain):  # as it is, and as it stands in Markdown
            text = text.replace(write(folder), write(folder.name))
            text = text.replace(f"{write(folder.parent)}/", "") if folder.parent != Path("/") else text
    return _PATH.sub("", text)


def _front_matter(run: Run, what: Exported, base: str | None, data_sets: list[str]) -> Markdown:
    relation = "adapter" if what.adapter else "finetune"
    data = ModelCardData(
        library_name="peft" if what.adapter else "transformers",
        pipeline_tag="text-generation",
        base_model=base,
        base_model_relation=None if base is None else relation,
        datasets=data_sets or None,
        tags=["caldpo", "preference-learning", run.loss.replace("_", "-")],
    )
    return Markdown(f"---\n{data.to_yaml()}\n---")


def _extends_merged_adapter(config: Mapping[str, Any]) -> bool:
    """Tell whether the base has an earlier adapter merged into it, which is published nowhere."""
    return bool(config.get("adapter.init_from")) and config.get("adapter.init_mode") == "merged"


def _held_out(run: Run, what: Exported) -> Markdown | None:
    """Tabulate metrics at the exported step, or at the last evaluation before it."""
    rows = []
    for metric in (*shown_metrics.HELD_OUT, *(shown_metrics.ORACLE if what.is_end else ())):
        step, value = what.step, metric.final(run.final) if what.is_end else None
        if value is None:
            curve = {s: v for s, v in metric.curve(run.curves).items() if what.step is None or s <= what.step}
            step, value = max(curve.items(), default=(None, None))
        if value is not None:
            rows.append([metric.title, number(value), metric.unit, str(step), metric.meaning])
    return markdown_table(["metric", "value", "unit", "step", "meaning"], rows) if rows else None


def _evaluations(run: Run) -> Iterator[tuple[str, Markdown, list[str]]]:
    """Yield each suite with a table of its main measures, and its notes."""
    for suite, content in run.evaluation.items():
        rows = []
        for name, measure in content["measures"].items():
            if isinstance(measure, Mapping) and measure.get("main"):
                value, n = as_float(measure.get("value")), measure.get("n")
                ends = [as_float(measure[end]) for end in ("low", "high")] if has_interval(measure) else []
                text = with_interval(value, *ends) if ends else number(value)
                rows.append([str(measure.get("title", name)), text, str(measure.get("unit", "")), f"{n if n else ''}"])
        if rows:
            yield suite, markdown_table(["measure", "value [interval]", "unit", "n"], rows), content.get("notes") or []


def _settings(run: Run) -> list[list[str]]:
    """List key and value of what decides a run's numbers."""
    return [
        [key, value if isinstance(value, str) else json.dumps(value, default=str)]
        for group in _SHOWN
        for key, value in run.resolved.items()
        if (key == group or key.startswith(f"{group}.")) and not _NO_SETTING.fullmatch(key)
    ]
