"""What a model card says of a run's parts: base, data, settings, papers. No heavy imports."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import caldpo
from caldpo.report.run_files import Run
from caldpo.utils.yaml_io import flatten

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_PLACE = re.compile(r"(?:file://|(?<![\w./\\:>)]))~?/(?:[^\s/'\"`,;:|<>()\[\]{}]+/)+(?=[^\s/'\"`,;:|<>()\[\]{}])")
_ARXIV = re.compile(r"arXiv:?\s+(\d{4}\.\d{4,5})", re.IGNORECASE)
_SHOWN = ("loss", "optim", "adapter", "reference", "trainer", "model", "data", "reward_beta", "layout", "seed")
_NO_SETTING = re.compile(r"trainer\.(progress_bar|metrics_sync_every)|.*\.(cache|_partial_|_convert_)|data\.workers")


def published_base(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str | None:
    """The hub id of the model that training started from; None of a folder, or of an embedded model.

    A folder that is no longer there may look like an id, so what the run noted decides: of the hub it has the commit.

    Args:
        config: of a run, nested or flat.
        summary: of a run.
    """
    path, noted = flatten(config).get("model.path"), summary.get("policy")
    if not _is_published(path):
        return None
    if flatten(config).get("adapter.init_from") and flatten(config).get("adapter.init_mode") == "merged":
        return None  # the base with an earlier adapter in it, which is nowhere but here
    return path if not isinstance(noted, str) or f"{path}@" in noted else None


def published_data(config: Mapping[str, Any]) -> list[str]:
    """The hub ids of the data sets, without repeats."""
    found = [v for k, v in flatten(config).items() if k.startswith("data.") and k.endswith(".path")]
    return list(dict.fromkeys(value for value in found if _is_published(value) and "/" in value))


def _is_published(path: Any) -> bool:
    return isinstance(path, str) and _HUB_ID.fullmatch(path) is not None and not Path(path).exists()


def citations(target: str) -> list[str]:
    """The arXiv numbers that the file of a loss names at its head; none of a loss outside caldpo.

    Args:
        target: dotted name of the loss's class.
    """
    module = target.rpartition(".")[0]
    if not re.fullmatch(r"caldpo\.losses\.\w+", module):
        return []
    file = Path(caldpo.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    try:
        head = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError):
        return []
    return list(dict.fromkeys(_ARXIV.findall(head)))


def data_lines(data: Any, run: Run) -> list[str]:
    """Where the pairs came from, how many there were, and what became of them."""
    facts = data if isinstance(data, Mapping) else {}
    lines = [f"source: {facts.get('source', run.choices.get('data', 'unknown'))}"]
    published = published_data(run.resolved)
    if published:
        lines.append(
            "on the hub: " + ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in published)
        )
    for name, title in (("train", "trained on"), ("test", "held out")):
        part = facts.get(name)
        if isinstance(part, Mapping):
            lines.append(f"{title}: {part.get('pairs')} pairs of {part.get('prompts')} prompts")
            cut = {k: v for k, v in flatten(part.get("truncated")).items() if v}
            if cut:
                lines.append(f"{title}, cut to length: " + ", ".join(f"{v} {k}" for k, v in cut.items()))
    for part in facts.get("read") or []:
        if isinstance(part, Mapping) and part.get("rejected"):
            told = ", ".join(f"{value} {key}" for key, value in flatten(part["rejected"]).items())
            lines.append(f"rows of {part.get('split')} that were no usable pairs: {told}")
    if "max_length" in facts:
        lines.append(f"longest sequence: {facts['max_length']} tokens, its prompt {facts.get('max_prompt_length')}")
    return lines


def settings_of(run: Run) -> list[list[str]]:
    """Key and value of what decides a run's numbers, in the order of the command line's groups."""
    rows = []
    for group in _SHOWN:
        for key, value in run.resolved.items():
            if (key == group or key.startswith(f"{group}.")) and not _NO_SETTING.fullmatch(key):
                rows.append([key, value if isinstance(value, str) else json.dumps(value, default=str)])
    return rows


def tracking(summary: Mapping[str, Any]) -> str:
    """The run at W&B: its address, or how whoever has the run's folder uploads it. Empty without W&B."""
    if isinstance(summary.get("tracker_url"), str):
        return f"W&B: <{summary['tracker_url']}>"
    sync = summary.get("upload")
    if not isinstance(sync, str) or not sync:
        return ""
    return f"W&B: kept offline; from the run's folder, `wandb sync wandb/{Path(sync.split()[-1]).name}`"


def without_cache_dirs(text: str, *folders: Path) -> str:
    """``text`` with paths from the root or from home cut to their last part; addresses of the web stay.

    Args:
        folders: these are cut wherever they stand, whatever their names hold.
    """
    for folder in (*folders, *(f.resolve() for f in folders)):
        if folder.is_absolute():
            text = text.replace(str(folder), folder.name)
            text = text.replace(f"{folder.parent}/", "") if folder.parent != Path("/") else text
    return _PLACE.sub("", text)
