"""The plain top-level keys of evaluation and generation; these signatures are their schemas. No heavy imports here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from caldpo.checkpointing.manifest import CheckpointName, wanted_checkpoint
from caldpo.config.bounds import NonNegative, NonNegativeInt, Positive, PositiveInt
from caldpo.config.find_runs import find_runs
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.evaluation.judge.endpoint import require_endpoint


@validated
@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """What is looked at, and how.

    Args:
        run: folder of a run, or of a sweep; None where ``model.path`` names a model.
        checkpoint: the policy of a run: ``final`` (at its last step), ``last`` (the last that was saved, also of a run
            that did not finish), or an optimiser step that a checkpoint was saved at, ``40`` or ``step-40``.
        output: folder that ``evaluation/`` is written into; None takes the run's own, or one named after the model.
        cache: folder that tokens, fitted models and made pairs are kept in, whatever a run's configuration names.
        device: ``auto`` is the GPU where there is one.
        precision: of forward passes, by Lightning's name; None takes the run's own, 32-true for a model.
        reward_beta: factor from log-ratio (nats) to the implicit reward; None takes the run's own, 0.1 for a model.
        max_pairs: held-out pairs to look at, the first ones; None takes all.
        batch: responses a forward pass or a step of sampling has at most; None takes twice ``eval_micro_batch_size``.
        seed: of sampling and resampling.
        allow_untrusted_code: build classes outside caldpo that a run's configuration names, and run its model's code.
    """

    run: str | None
    checkpoint: CheckpointName
    output: str | None
    cache: str
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"] | None
    reward_beta: Positive | None
    max_pairs: PositiveInt | None
    batch: PositiveInt | None
    seed: NonNegativeInt
    allow_untrusted_code: bool

    @property
    def wanted(self) -> Literal["final", "last"] | int:
        """The checkpoint, a step as a number."""
        return wanted_checkpoint(self.checkpoint)


@validated
@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(TargetSettings):
    """An evaluation.

    Args:
        again: evaluate also what was evaluated before with the same settings and weights.
        report: write the comparison report of a sweep anew at the end.
    """

    again: bool
    report: bool


@validated
@dataclass(frozen=True, kw_only=True)
class GenerateSettings(TargetSettings):
    """Sampling to read.

    Args:
        prompts: texts, or a file of them (``.txt``: one a line, ``.jsonl``: ``prompt`` as text or messages); None takes
            held-out prompts of the data.
        count: held-out prompts, the first distinct ones; of prompts that are given, all are taken.
        samples: responses to each prompt.
        max_new_tokens: longest response, tokens; None takes the length of the run's own samples, 256 for a model.
        temperature: of plain sampling; 0 takes the likeliest token.
        compare: show the reference beside the policy, where there is one.
        chat: answer what is typed, turn by turn, in place of prompts.
        as_chat: whether a prompt given as text is a user's turn for the chat template; None follows the data, and
            without data the tokenizer.
    """

    prompts: list[str] | str | None
    count: PositiveInt
    samples: PositiveInt
    max_new_tokens: PositiveInt | None
    temperature: NonNegative
    compare: bool
    chat: bool
    as_chat: bool | None


def check_evaluation(cfg: DictConfig) -> None:
    """What can be said of an evaluation before anything heavy is imported.

    Raises:
        CaldpoError: there is nothing to look at, or nobody who judges.
    """
    check_target(cfg)
    if "judge" in cfg and not cfg.judge.mock:
        require_endpoint(cfg.judge.base_url, cfg.judge.model)


def check_target(cfg: DictConfig) -> None:
    """Whether there is one thing to look at.

    Raises:
        CaldpoError: neither a run nor a model is named, or both, or a folder without runs, or a model without pairs.
    """
    named = cfg.model.path is not None
    wanted_checkpoint(cfg.checkpoint)
    if cfg.run is None and not named:
        raise CaldpoError(
            "there is nothing to look at", key="run", remedy="name a run's folder, run=outputs/RUN, or give model.path"
        )
    if cfg.run is not None and named:
        raise CaldpoError(
            f"run={cfg.run} names a policy already", key="model.path", value=cfg.model.path, remedy="leave one out"
        )
    brings_prompts = cfg.get("prompts") is not None or cfg.get("chat")
    if named and cfg.get("data") is None and not brings_prompts:
        raise CaldpoError(
            "model.path needs pairs or prompts to be looked at on",
            key="data",
            remedy="choose them, for example data=ultrafeedback, or data=local data.train=FILE data.test=FILE",
        )
    if named and cfg.checkpoint != "final":
        raise CaldpoError("only a run has checkpoints", key="checkpoint", value=cfg.checkpoint, remedy="leave it out")
    if cfg.run is not None:
        find_runs(Path(cfg.run).expanduser(), key="run")
