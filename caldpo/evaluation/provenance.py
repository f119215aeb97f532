"""What a result depends on, so that it is measured anew when any of it is another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from caldpo.evaluation.subject import Subject
from caldpo.evaluation.suite import Suite
from caldpo.summary import versions

# Settings of the command that results depend on; the others say where and how fast.
_TELLING = ("max_pairs", "batch", "seed")
_LIBRARIES = ("scipy", "torchmetrics")  # whose arithmetic is in the measures, beside those that a run names
_MOST_FILES = 1000


def determined_by(suite: Suite, subject: Subject) -> dict[str, Any]:
    """Settings, weights, pairs, versions, and the files and folders that any of them name."""
    settings = suite.settings()
    own = {name: getattr(subject.settings, name) for name in _TELLING}
    own |= {"checkpoint": subject.settings.wanted, "precision": subject.precision, "reward_beta": subject.reward_beta}
    named = (settings, subject.target.config["model"], subject.target.config["reference"], subject.bench.reference)
    return {
        "suite": settings,
        "settings": own,
        "policy": subject.identity,
        "reference": subject.reference_identity,
        "step": subject.weights.step,
        "weights": [weights.stamp() for weights in (subject.weights, *suite.other_weights(subject))],
        "data": f"{subject.data.source.name}: {subject.data.test or subject.data.train}",
        "pairs": pairs_digest(subject),
        "files": stamps(named),
        "versions": versions() | {name: version(name) for name in _LIBRARIES},
    }


def digest_of(facts: Mapping[str, Any]) -> str:
    """The same for the same facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def pairs_digest(subject: Subject) -> str:
    """Of the held-out pairs' texts, tokens and scores."""
    content = hashlib.sha256(subject.data.test_pairs.digest().encode())
    for pair in subject.data.test_sources:
        told = [pair.prompt, pair.chosen, pair.rejected, pair.score_chosen, pair.score_rejected]
        content.update(json.dumps(told).encode())
    return content.hexdigest()[:16]


def stamps(named: Iterable[Any]) -> dict[str, list[list[Any]]]:
    """Size and time of each file that a text among these values is the path of, or that lies in such a folder."""
    paths = {text for value in named for text in _texts(value) if text}
    return {text: found for text in sorted(paths) if (found := _stamp(Path(text).expanduser()))}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _stamp(path: Path) -> list[list[Any]]:
    try:
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
        return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files[:_MOST_FILES]]
    except OSError:  # a text that is no path, or a folder that is not ours to read
        return []
