"""The JSON files between a benchmark and its worker processes: a job, and its answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from caldpo.config.run_lifecycle import write_json

Ids = tuple[Sequence[int], Sequence[int], Sequence[int]]  # prompt, chosen, rejected

# files and folders of a prepared folder
MODEL, TOKENIZER, ADAPTER, IDS, TRAIN, TEST = "model", "tokenizer", "adapter", "ids.jsonl", "train.jsonl", "test.jsonl"
JOB, ANSWER = "job.json", "answer.json"  # of a job's own folder

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
        dtype: of weights and arithmetic.
        lora_rank: rank of the trained adapters; None trains all weights.
        base_bits: of the matrices under them; None keeps them in ``dtype``.
        num_threads, seed, micro_batch_size, warmup_steps, lr, beta: as in the settings.
        steps: of the run, warm-up included.
        model: keys of ``model=random`` that make the saved model.
        max_length, max_prompt_length: limits that the pairs are within.
    """

    variant: str
    folder: str
    output: str
    device: str
    dtype: str
    lora_rank: int | None
    base_bits: Literal[4, 8] | None
    num_threads: int
    seed: int
    micro_batch_size: int
    warmup_steps: int
    steps: int
    lr: float
    beta: float
    model: dict[str, Any]
    max_length: int
    max_prompt_length: int

    @property
    def autocast(self) -> bool:
        """Whether weights have two dtypes: adapters are float32 beside a bfloat16 body."""
        return self.dtype == "bfloat16" and self.lora_rank is not None

    def file(self, name: str) -> Path:
        """Path in the prepared folder."""
        return Path(self.folder) / name

    @property
    def answer(self) -> Path:
        """Path of the worker's answer."""
        return Path(self.output) / ANSWER

    def write(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, asdict(self))

    @staticmethod
    def read(path: Path) -> Job:
        """Read what :meth:`write` wrote."""
        return Job(**json.loads(path.read_text(encoding="utf-8")))


class PeakFigures(TypedDict, total=False):
    """Bytes measured by :class:`caldpo.bench.measure.PeakMemory`; ``peak`` is compared, the others explain it."""

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

    def write(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, asdict(self))

    @staticmethod
    def read(path: Path) -> Answer:
        """Read what :meth:`write` wrote."""
        return Answer(**json.loads(path.read_text(encoding="utf-8")))


def digest(pairs: Iterable[Ids]) -> str:
    """Hash the token ids of a step's pairs, whatever their order within the step."""
    rows = sorted(json.dumps([list(ids) for ids in pair]) for pair in pairs)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
