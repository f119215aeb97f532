"""Define the plain top-level keys of evaluation and generation; these signatures are their schemas.

``conf/target.yaml``, ``conf/evaluate.yaml`` and ``conf/generate.yaml`` explain the keys. No heavy imports here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from caldpo.checkpointing.manifest import CheckpointName, Wanted, wanted_checkpoint
from caldpo.config.bounds import NonNegative, NonNegativeInt, Positive, PositiveInt
from caldpo.config.find_runs import find_runs
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.evaluation.judge.endpoint import require_endpoint


@validated
@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """Which policy is evaluated, and how its forward passes run."""

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
    def wanted(self) -> Wanted:
        """The checkpoint, a step as a number."""
        return wanted_checkpoint(self.checkpoint)


@validated
@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(TargetSettings):
    """Settings of ``caldpo.evaluate``."""

    overwrite: bool
    report: bool


@validated
@dataclass(frozen=True, kw_only=True)
class GenerateSettings(TargetSettings):
    """Settings of ``caldpo.generate``."""

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
    """A model of the hub or a folder in its format; see :class:`caldpo.models.hub_model.HubModel`."""

    path: str | None
    revision: str | None
    tokenizer: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None


@validated
@dataclass(frozen=True, kw_only=True)
class NamedReference:
    """Another reference than the run's own."""

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
    if cfg.run is not None:
        if model is not None:
            raise CaldpoError(
                f"run={cfg.run} names a policy already", key="model.path", value=model, remedy="leave one out"
            )
        find_runs(Path(cfg.run).expanduser(), key="run")
    elif model is None:
        raise CaldpoError(
            "no run or model is named", key="run", remedy="name a run's folder, run=outputs/RUN, or set model.path"
        )
    elif cfg.get("data") is None and cfg.get("prompts") is None and not cfg.get("chat"):
        raise CaldpoError(
            "model.path needs pairs or prompts to be evaluated on",
            key="data",
            remedy="choose them, for example data=ultrafeedback, or data=local data.train=FILE data.test=FILE",
        )
    elif cfg.checkpoint != "final":
        raise CaldpoError("only a run has checkpoints", key="checkpoint", value=cfg.checkpoint, remedy="leave it out")
