"""What a worker process is told, and what it answers; both travel as JSON files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from caldpo.config.run_lifecycle import write_json

Ids = tuple[Sequence[int], Sequence[int], Sequence[int]]  # prompt, chosen, rejected

# what a prepared folder holds
MODEL, TOKENIZER, ADAPTER, IDS, TRAIN, TEST = "model", "tokenizer", "adapter", "ids.jsonl", "train.jsonl", "test.jsonl"
JOB, ANSWER = "job.json", "answer.json"  # in a job's own folder

HUGE = 1e9  # a limit that no gradient norm reaches: both trainers measure and scale, neither clips
BETAS, EPS = (0.9, 0.999), 1e-8  # of AdamW


@dataclass(frozen=True)
class Job:
    """One variant to run once.

    Args:
        variant: name in :data:`caldpo.bench.variants.VARIANTS`.
        folder: what :mod:`caldpo.bench.prepare` made; an absolute path.
        output: a folder of its own for what the trainer writes; an absolute path.
        device: cpu or cuda.
        dtype: of the weights and of the arithmetic.
        lora_rank: rank of the adapters that are trained; None trains all weights.
        base_bits: of the matrices under them; None keeps them in ``dtype``.
        num_threads, seed, micro_batch_size, warmup_steps, lr, beta: as in the settings.
        steps: of the run, warm-up included.
        model: keys of the training command's random model, which make the model that was saved.
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
        """Whether weights of more than one dtype meet: adapters are float32 beside a bfloat16 body."""
        return self.dtype == "bfloat16" and self.lora_rank is not None

    def file(self, name: str) -> Path:
        """A file or folder of what was prepared."""
        return Path(self.folder) / name

    @property
    def answer(self) -> Path:
        """Where the worker's answer is written."""
        return Path(self.output) / ANSWER

    def write(self, path: Path) -> None:
        """As JSON."""
        write_json(path, asdict(self))

    @staticmethod
    def read(path: Path) -> Job:
        """What :meth:`write` wrote."""
        return Job(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Answer:
    """What a variant did.

    Args:
        losses: mean over the pairs of each optimiser step, before its update.
        grad_norms: of the same gradients.
        step_digests: of the token ids that each step trained on, see :func:`digest`.
        seconds: of the timed steps together.
        reference_seconds: of computing the reference's log-probs before training; None: done in every step.
        memory: see :class:`caldpo.bench.measure.PeakMemory`.
        options: what the variant's options came to on this machine, in words.
        versions: of the libraries that did the work.
    """

    losses: list[float]
    grad_norms: list[float]
    step_digests: list[str]
    seconds: float
    reference_seconds: float | None
    memory: dict[str, Any]
    options: str
    versions: dict[str, str]

    def write(self, path: Path) -> None:
        """As JSON."""
        write_json(path, asdict(self))

    @staticmethod
    def read(path: Path) -> Answer:
        """What :meth:`write` wrote."""
        return Answer(**json.loads(path.read_text(encoding="utf-8")))


def digest(pairs: Iterable[Ids]) -> str:
    """A hash of the token ids of a step's pairs, whatever their order within the step."""
    rows = sorted(json.dumps([list(ids) for ids in pair]) for pair in pairs)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
