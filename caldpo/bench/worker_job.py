"""The JSON files between a benchmark and its worker processes: a job, and its answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from caldpo.bench.benchmark_settings import BenchmarkModel, BenchmarkSettings
from caldpo.utils.atomic_io import write_text

Content = TypeVar("Content")
Ids = tuple[Sequence[int], Sequence[int], Sequence[int]]  # prompt, chosen, rejected

# files and folders of a prepared folder
MODEL, TOKENIZER, ADAPTER, IDS, TRAIN, TEST = "model", "tokenizer", "adapter", "ids.jsonl", "train.jsonl", "test.jsonl"

NO_CLIPPING = 1e9  # a limit above every gradient norm: both trainers measure the norm, neither clips
BETAS, EPS = (0.9, 0.999), 1e-8  # of AdamW


@dataclass(frozen=True)
class Job:
    """One run of a variant."""

    variant: str
    folder: str  # absolute path of what benchmark_data.prepare wrote
    output: str  # absolute path of the run's own folder
    device: str  # cpu or cuda
    settings: BenchmarkSettings
    model: BenchmarkModel

    @property
    def autocast(self) -> bool:
        """Whether weights have two dtypes: adapters are float32 beside a bfloat16 body."""
        return self.model.dtype == "bfloat16" and self.model.lora_rank is not None

    @property
    def file(self) -> Path:
        """Path of the job's own file."""
        return Path(self.output) / "job.json"

    @property
    def answer(self) -> Path:
        """Path of the worker's answer."""
        return Path(self.output) / "answer.json"

    def prepared(self, name: str) -> Path:
        """Path in the prepared folder."""
        return Path(self.folder) / name


@dataclass(frozen=True)
class Answer:
    """Measurements of a run."""

    losses: list[float]  # of each optimiser step, mean over its pairs, before its update
    grad_norms: list[float]  # of the same gradients
    step_digests: list[str]  # of the token ids that each step trained on, see ``digest``
    seconds: float  # of all timed steps
    reference_seconds: float | None  # of precomputing the reference's log-probs; None: computed in every step
    memory: dict[str, Any]  # by measure.StepMeter; ``peak`` is compared, the others explain it
    options: str  # of the variant on this machine, in words
    versions: dict[str, str]  # of the libraries


def write(content: Job | Answer, path: Path) -> None:
    """Write as JSON, in which Python's NaN stays."""
    write_text(path, json.dumps(asdict(content)))


def read(kind: type[Content], path: Path) -> Content:
    """Read a job or an answer that :func:`write` wrote."""
    return TypeAdapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))


def digest(pairs: Iterable[Ids]) -> str:
    """Hash the token ids of a step's pairs, whatever their order within the step."""
    rows = sorted(json.dumps([list(ids) for ids in pair]) for pair in pairs)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
