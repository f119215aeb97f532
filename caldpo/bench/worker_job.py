"""The JSON files between a benchmark and its worker processes: a job, and its answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from caldpo.bench.benchmark_settings import BenchmarkModel, BenchmarkSettings

Ids = tuple[Sequence[int], Sequence[int], Sequence[int]]  # prompt, chosen, rejected

# files and folders of a prepared folder
MODEL, TOKENIZER, ADAPTER, IDS, TRAIN, TEST = "model", "tokenizer", "adapter", "ids.jsonl", "train.jsonl", "test.jsonl"

NO_CLIPPING = 1e9  # a limit above every gradient norm: both trainers measure the norm, neither clips
BETAS, EPS = (0.9, 0.999), 1e-8  # of AdamW


@dataclass(frozen=True)
class Job:
    """One run of a variant.

    Args:
        variant: name in :data:`caldpo.bench.benchmark_settings.VARIANTS`.
        folder: absolute path of what :func:`caldpo.bench.benchmark_data.prepare` wrote.
        output: absolute path of the run's own folder.
        device: cpu or cuda.
    """

    variant: str
    folder: str
    output: str
    device: str
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

    @staticmethod
    def read(path: Path) -> Job:
        """Read a job that was written as JSON."""
        content = json.loads(path.read_text(encoding="utf-8"))
        settings, model = BenchmarkSettings(**content.pop("settings")), BenchmarkModel(**content.pop("model"))
        return Job(**content, settings=settings, model=model)


class PeakFigures(TypedDict, total=False):
    """Bytes by :class:`caldpo.bench.measure.PeakMemory`; ``peak`` is compared, the others explain it."""

    peak: int
    peak_of_process: int
    after_imports: int
    peak_before_training: int
    of: str


@dataclass(frozen=True)
class Answer:
    """Measurements of a run.

    Args:
        losses: of each optimiser step, mean over its pairs, before its update.
        grad_norms: of the same gradients.
        step_digests: of the token ids that each step trained on, see :func:`digest`.
        seconds: of all timed steps.
        reference_seconds: of precomputing the reference's log-probs; None: computed in every step.
        memory: peak of training.
        options: the variant's options on this machine, in words.
        versions: of the libraries.
    """

    losses: list[float]
    grad_norms: list[float]
    step_digests: list[str]
    seconds: float
    reference_seconds: float | None
    memory: PeakFigures
    options: str
    versions: dict[str, str]

    @staticmethod
    def read(path: Path) -> Answer:
        """Read an answer that was written as JSON."""
        return Answer(**json.loads(path.read_text(encoding="utf-8")))


def digest(pairs: Iterable[Ids]) -> str:
    """Hash the token ids of a step's pairs, whatever their order within the step."""
    rows = sorted(json.dumps([list(ids) for ids in pair]) for pair in pairs)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
