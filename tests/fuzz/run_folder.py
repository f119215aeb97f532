"""A run's folder as training leaves it, and what can happen to a file of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from caldpo.checkpointing.checkpoint_io import CheckpointFolders
from tests.checkpointing.test_checkpoint_io import checkpoint
from tests.fuzz.values import anything, mutated, mutations, texts
from tests.helpers.tiny import tiny_pairs
from tests.nonfinite.test_step_dump import dumped, seen_of
from tests.report.results import accuracy
from tests.report.runs import finals, held_out, write_run

ROWS = [held_out(0, 0.0, 0.0), *({"step": i, "loss": 1 / i} for i in range(1, 9)), held_out(8, -1.0, -3.0)]
STEPS = (5, 7)  # of its checkpoints, which count on 9 rows
DUMP = "nonfinite_batches/step-12.json"
MANIFEST = "checkpoints/step-7/manifest.json"
FILES = (
    "config.yaml", "summary.json", "metrics.csv", "samples.jsonl", ".hydra/config.yaml", ".hydra/hydra.yaml",
    ".hydra/overrides.yaml", "evaluation/preference.json", MANIFEST, "checkpoints/step-7/weights.safetensors",
    "checkpoints/step-7/training.pt", DUMP,
)  # fmt: skip


def write_folder(place: Path) -> Path:
    """The folder of a finished run, with a batch that went bad and an evaluation."""
    folder = write_run(
        place / "run",
        rows=ROWS,
        metrics=finals(ROWS[-1], oracle__kl=0.5),
        config={"trainer": {"max_steps": 8}},
        summary={"overrides": ["loss=dpo", "seed=0"], "stretches": 1, "planned_steps": 8},
        evaluation=accuracy(0.75, 0.5, 1.0, details={"reliability": []}),
    )
    (folder / "samples.jsonl").write_text('{"prompt": "p"}\n' * 9)
    for step in STEPS:
        CheckpointFolders().save_checkpoint(checkpoint(step), folder / "checkpoints" / f"step-{step}")
    dumped(folder, [seen_of(tiny_pairs(3), "padded")])
    return folder


places = st.lists(st.integers(0, 9), max_size=4)
swaps = st.lists(st.tuples(places, anything), min_size=1, max_size=3)


def swapped(tree: Any, changes: list[tuple[list[int], Any]]) -> Any:
    """``tree`` with other values at some places, each given by the numbers of the branches that lead there."""
    for way, value in changes:
        tree = _swapped(tree, way, value)
    return tree


def _swapped(tree: Any, way: list[int], value: Any) -> Any:
    if not way or not isinstance(tree, dict | list) or not tree:
        return value
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key, changed = keys[way[0] % len(keys)], tree.copy()
    changed[key] = _swapped(tree[key], way[1:], value)
    return changed


def as_file(name: str, tree: Any) -> bytes | None:
    """A file of this name that holds ``tree``; None where it cannot."""
    try:
        text = json.dumps(tree) if name.endswith(".json") else yaml.safe_dump(tree, allow_unicode=True)
        return text.encode()
    except (TypeError, ValueError, RecursionError, yaml.YAMLError):
        return None


def forged(content: dict[str, Any], changes: list[tuple[list[int], Any]]) -> bytes:
    """A manifest that holds something else than was written, and vouches for it."""
    changed = swapped({key: value for key, value in content.items() if key != "sha256"}, changes)
    if not isinstance(changed, dict):
        return json.dumps(changed).encode()
    said = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
    return json.dumps({**changed, "sha256": said}).encode()


def damaged(name: str, content: bytes, harm: tuple[str, Any]) -> bytes | None:
    """The file after what happened to it."""
    what, how = harm
    if what == "bytes":
        return mutated(content, how)
    if what == "other":
        return how
    if name == MANIFEST:
        return forged(json.loads(content), how)
    if name.endswith(".json"):
        return as_file(name, swapped(json.loads(content), how))
    if name.endswith(".yaml"):
        return as_file(name, swapped(yaml.safe_load(content), how))
    if name.endswith(".csv"):
        cells = swapped([line.split(",") for line in content.decode().splitlines()], how)
        lines = cells if isinstance(cells, list) else [cells]
        joined = "\r\n".join(",".join(map(str, line)) if isinstance(line, list) else str(line) for line in lines)
        return joined.encode("utf-8", "replace")
    return mutated(content, [("change", len(way) / 9, str(value).encode("utf-8", "replace")) for way, value in how])


harms = (
    st.tuples(st.just("bytes"), mutations)
    | st.tuples(st.just("values"), swaps)
    | st.tuples(
        st.just("other"),
        st.binary(max_size=200)
        | texts.map(lambda text: text.encode("utf-8", "replace"))
        | st.sampled_from([b"[" * 300_000, b"- " * 9_000, b"a: &a [1]\nb: *a\n", b"!!int ''", b"\0" * 4096, b'"']),
    )
)
