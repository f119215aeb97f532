"""Define the plain top-level keys of evaluation and generation; these signatures are their schemas.

No heavy imports here.
"""

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
    """Which policy is evaluated, and how its forward passes run.

    Args:
        run: folder of a run, or of a sweep; None where ``model.path`` names a model.
        checkpoint: the policy of a run: ``final`` (at its last step), ``last`` (the last that was saved, also of a run
            that did not finish), or an optimiser step that a checkpoint was saved at, ``40`` or ``step-40``.
        output: folder that ``evaluation/`` is written into; None takes the run's own, or one named after the model.
        cache: folder of cached tokens, fitted models and generated pairs, whatever a run's configuration names.
        device: ``auto`` is the GPU where there is one.
        precision: of forward passes, by Lightning's name; None takes the run's own, 32-true for a model.
        reward_beta: factor from log-ratio (nats) to the implicit reward; None takes the run's own, 0.1 for a model.
        max_pairs: number of held-out pairs, the first ones; None takes all.
        batch: largest number of responses in a forward pass or a step of sampling; None takes twice
            ``eval_micro_batch_size``.
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
    """Settings of ``caldpo.evaluate``.

    Args:
        again: also rerun suites whose results are up to date.
        report: rewrite the comparison report of a sweep at the end.
    """

    again: bool
    report: bool


@validated
@dataclass(frozen=True, kw_only=True)
class GenerateSettings(TargetSettings):
    """Settings of ``caldpo.generate``.

    Args:
        prompts: texts, or a file of them (``.txt``: one a line, ``.jsonl``: ``prompt`` as text or messages); None takes
            held-out prompts of the data.
        count: number of held-out prompts, the first distinct ones; all prompts of ``prompts`` are taken.
        samples: responses to each prompt.
        max_new_tokens: longest response, tokens; None takes the length of the run's own samples, 256 for a model.
        temperature: of plain sampling; 0 takes the likeliest token.
        compare: show the reference beside the policy, where there is one.
        chat: answer typed lines, turn by turn, in place of prompts.
        as_chat: wrap a plain-text prompt as a user's turn in the chat template; None follows the data, and without
            data the tokenizer.
    """

    prompts: list[str] | str | None
    count: PositiveInt
    samples: PositiveInt
    max_new_tokens: PositiveInt | None
    temperature: NonNegative
    compare: bool
    chat: bool
    as_chat: bool | None


@validated
@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model of the hub or a folder in its format; see :class:`caldpo.models.hub_model.HubModel`.

    Args:
        path: hub id or folder; None where ``run`` names the policy.
        revision: branch, tag or commit of a hub model.
        tokenizer: hub id or folder of another tokenizer; None takes the model's own.
        dtype: of the weights; ``auto`` is the checkpoint's.
        attention: attention implementation of transformers; None lets it choose.
    """

    path: str | None
    revision: str | None
    tokenizer: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None


@validated
@dataclass(frozen=True, kw_only=True)
class NamedReference:
    """Another reference than the run's own.

    Args:
        path: hub id or folder; None takes the run's own.
    """

    path: str | None


def check_evaluation(cfg: DictConfig) -> None:
    """Check an evaluation before anything heavy is imported.

    Raises:
        CaldpoError: no policy to evaluate, or a judge without an endpoint.
    """
    check_target(cfg)
    if "judge" in cfg and not cfg.judge.mock:  # its own check says the same, after torch is imported
        require_endpoint(cfg.judge.base_url, cfg.judge.model)


def check_target(cfg: DictConfig) -> None:
    """Require exactly one run or model.

    Raises:
        CaldpoError: neither a run nor a model is named, or both, or a folder without runs, or a model without pairs.
    """
    model = cfg.model.path
    wanted_checkpoint(cfg.checkpoint)
    if cfg.run is None and model is None:
        raise CaldpoError(
            "no run or model is named", key="run", remedy="name a run's folder, run=outputs/RUN, or set model.path"
        )
    if cfg.run is not None and model is not None:
        raise CaldpoError(
            f"run={cfg.run} names a policy already", key="model.path", value=model, remedy="leave one out"
        )
    has_prompts = cfg.get("prompts") is not None or cfg.get("chat")
    if model is not None and cfg.get("data") is None and not has_prompts:
        raise CaldpoError(
            "model.path needs pairs or prompts to be evaluated on",
            key="data",
            remedy="choose them, for example data=ultrafeedback, or data=local data.train=FILE data.test=FILE",
        )
    if model is not None and cfg.checkpoint != "final":
        raise CaldpoError("only a run has checkpoints", key="checkpoint", value=cfg.checkpoint, remedy="leave it out")
    if cfg.run is not None:
        find_runs(Path(cfg.run).expanduser(), key="run")
