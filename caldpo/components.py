"""The objects that a run is made of, each built from its section of the configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import PreTrainedModel

from caldpo.data.datamodule import PairDataModule
from caldpo.data.pair_stream import REMEMBERED
from caldpo.errors import CaldpoError
from caldpo.lightning_trainer import TrainerSettings
from caldpo.loggers.tracker_base import Trackers
from caldpo.losses.base import PreferenceLoss
from caldpo.models.adapted_policy import base_model
from caldpo.models.adapters import AdapterSource
from caldpo.models.model_source import ModelSource
from caldpo.models.qlora import check_quantized
from caldpo.modifiers.modified_loss import modified
from caldpo.nonfinite.overflow_check import check_overflow
from caldpo.optim.optimizer_base import OptimizerChoice
from caldpo.reference.auto_reference import Auto
from caldpo.reference.disabled_adapter import check_adapter
from caldpo.reference.moving_reference import check_moving
from caldpo.reference.precomputed import Precomputed
from caldpo.reference.reference_base import ReferenceSource
from caldpo.rollouts.rollout_base import NoRollouts

_CALL = re.compile(r"(?:missing \d+ required|unexpected keyword|got multiple values|takes \d+ positional)")


@dataclass(frozen=True)
class Components:
    """What the groups of a training configuration choose. Nothing is loaded yet."""

    loss: PreferenceLoss
    model: ModelSource  # of the weights under the adapter; without an adapter, of the policy's
    adapter: AdapterSource
    reference: ReferenceSource
    data: PairDataModule
    optim: OptimizerChoice
    trainer: TrainerSettings
    rollouts: NoRollouts = field(default_factory=NoRollouts)  # where the pairs of a step come from
    logger: Trackers = field(default_factory=Trackers)  # besides metrics.csv
    callbacks: dict[str, pl.Callback] = field(default_factory=dict)  # without those that the configuration sets to null

    @classmethod
    def from_config(cls, cfg: DictConfig, *, tracked: bool = True) -> Components:
        """Build every component of a training run; ``logger`` and ``callbacks`` only where it is ``tracked``.

        Raises:
            CaldpoError: a class cannot be imported, does not take its section's keys, or refuses a value.
        """
        modifiers = build(cfg.modifier, "modifier") if cfg.get("modifier") else None
        loss, reference = modified(build(cfg.loss, "loss"), modifiers), build(cfg.reference, "reference")
        model, adapter = build_model(cfg)
        optim, trainer, data = (build(cfg[name], name) for name in ("optim", "trainer", "data"))
        data.source.attach_model(model)
        rest: dict[str, Any] = {"rollouts": build(cfg.rollouts, "rollouts")}
        if tracked:
            callbacks = build(cfg.callbacks, "callbacks")
            trackers = build(cfg.logger, "logger")  # by name; one alone from a yaml of a person's own, without a name
            rest["logger"] = Trackers(trackers if isinstance(trackers, dict) else {"own": trackers})
            rest["callbacks"] = {name: part for name, part in callbacks.items() if part is not None}
        return cls(loss, model, adapter, reference, data, optim, trainer, **rest)

    def check(self, *, on_this_machine: bool = True) -> None:
        """Refuse what can be refused before data and weights load; an estimate is not ``on_this_machine``'s devices.

        Raises:
            CaldpoError: a component needs what is not installed or not allowed, or components exclude each other.
        """
        if on_this_machine:
            self.trainer.check()
        for name, callback in self.callbacks.items():
            if not isinstance(callback, pl.Callback):
                raise CaldpoError(
                    f"builds {type(callback).__name__}, which is no callback of Lightning",
                    key=f"callbacks.{name}._target_",
                    remedy="name a subclass of pytorch_lightning.Callback",
                )
        sharded = self.trainer.shards_optimizer
        replicas = self.trainer.world_size > 1 and not sharded
        self.optim.check(self.trainer.precision, sharded=sharded, replicas=replicas)
        self.logger.check()
        self.adapter.check()
        self.reference.check()
        self._check_streaming()
        self._check_mismatched()
        self.rollouts.check(self.loss, self.reference, self.data, self.trainer.world_size)
        self._check_weighed_tokens()
        check_moving(self.loss.reference_move, self.reference, self.adapter, shards=self.trainer.shards_optimizer)
        check_adapter(self.reference, self.adapter)
        check_quantized(self.adapter, sharded=sharded)
        check_overflow(
            loss=self.loss,
            model=self.model,
            adapter=self.adapter,
            optim=self.optim,
            max_length=self.data.max_length,
            micro_batch_size=self.data.micro_batch_size,
            trainer=self.trainer,
        )

    def _check_streaming(self) -> None:
        """Refuse what a stream of training pairs cannot have, whose length is unknown."""
        if not self.data.streaming:
            return
        if self.trainer.max_steps is None:
            raise CaldpoError(
                "is needed with data.streaming=true: how many pairs an epoch has is not known",
                key="trainer.max_steps",
                value="null",
                remedy="add trainer.max_steps=NUMBER",
            )
        if self.trainer.extra.overfit_batches is not None:
            raise CaldpoError(
                "cannot be combined with data.streaming=true, whose pairs are read once",
                key="trainer.extra.overfit_batches",
                value=self.trainer.extra.overfit_batches,
                remedy="set data.streaming=false",
            )
        first = isinstance(self.reference, Precomputed) and not isinstance(self.reference, Auto)
        if first and self.loss.needs_reference:
            raise CaldpoError(
                "computes log-probs of all training pairs first, and data.streaming=true reads pairs as needed",
                key="reference",
                value="precomputed",
                remedy="choose reference=frozen, reference=adapter (with an adapter) or reference=auto",
            )

    def _check_weighed_tokens(self) -> None:
        """Refuse stored log-probs, which are sums over all tokens alike, for a loss that weighs tokens."""
        stored = isinstance(self.reference, Precomputed) and not isinstance(self.reference, Auto)
        if stored and self.loss.needs_reference and self.loss.weighs_tokens:
            raise CaldpoError(
                "stores sums over all tokens of a response alike, and the loss weighs them (modifier ld_dpo or sampo)",
                key="reference",
                value="precomputed",
                remedy="choose reference=frozen, reference=adapter (with an adapter) or reference=auto",
            )

    def _check_mismatched(self) -> None:
        """Refuse what a loss that reads mismatched responses cannot have."""
        if not self.loss.needs_mismatched:
            return
        if isinstance(self.reference, Precomputed) and not isinstance(self.reference, Auto):
            raise CaldpoError(
                "stores log-probs of each pair's own responses, and the loss needs those of mismatched ones as well",
                key="reference",
                value="precomputed",
                remedy="choose reference=frozen, reference=adapter (with an adapter) or reference=auto",
            )
        step = self.data.micro_batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size
        if step == 1:
            raise CaldpoError(
                "an optimiser step has one pair, and the loss compares it with the responses of another",
                key="data.micro_batch_size",
                value=self.data.micro_batch_size,
                remedy="raise it, or trainer.accumulate_grad_batches",
            )
        if self.data.streaming and step > REMEMBERED:
            raise CaldpoError(
                f"an optimiser step has {step:,} pairs, and the loss compares the last with the first, while a stream"
                f" remembers {REMEMBERED:,}",
                key="data.streaming",
                value="true",
                remedy="lower data.micro_batch_size or trainer.accumulate_grad_batches, or set data.streaming=false",
            )

    def row_needs(self) -> dict[str, Any]:
        """What the loss needs of the data's rows, for :meth:`~caldpo.data.datamodule.PairDataModule.prepare_pairs`."""
        return {
            "needs_scores": self.loss.needs_scores,
            "needs_rejected": self.loss.needs_rejected,
            "score_range": self.loss.score_range,
            # samples take the place of both responses of a row, and a reward model compares the row's own two
            "takes_unpaired": self.loss.takes_unpaired and not self.rollouts.on,
        }

    def step_reading(self) -> dict[str, Any]:
        """What the loss reads of a step, for :meth:`~caldpo.data.data_loading.TokenizedDataModule.plan_steps`."""
        return {"reads_ahead": self.loss.depends_on_batch, "mismatched": self.loss.needs_mismatched}

    def recompute_above(self, policy: PreTrainedModel, budget: int | None) -> int | None:
        """Tokens above which a micro-batch recomputes its activations, with ``model.gradient_checkpointing=auto``.

        These are the ``budget`` of a micro-batch, which a longer pair exceeds. None where all micro-batches do the
        same: ranks that share the state of one model have to.
        """
        possible = base_model(policy).supports_gradient_checkpointing and not self.trainer.shards_optimizer
        return budget if possible and getattr(self.model, "gradient_checkpointing", None) == "auto" else None

    def describe(self) -> dict[str, Any]:
        """Describe loss, policy and reference as ``summary.json`` records them; may ask the hub for a commit."""
        weights = self.model.identity()
        return {
            "formula": self.loss.formula,
            "implicit_reward_beta": self.loss.implicit_reward_beta,
            "rollouts": self.rollouts.describe() if self.rollouts.on else None,
            "policy": self.adapter.identity(weights),
            "reference": self.reference.identity(self.adapter.started_from(weights)),
        }


def build_model(cfg: DictConfig) -> tuple[ModelSource, AdapterSource]:
    """Build the sections ``model`` and ``adapter``: the source of the weights under the adapter, and the adapter.

    Raises:
        CaldpoError: as :func:`build`.
    """
    adapter: AdapterSource = build(cfg["adapter"], "adapter")
    return adapter.base(build(cfg["model"], "model")), adapter


def build_optional(cfg: DictConfig, name: str) -> Any:
    """Build the object of a section; None where the section is null."""
    return None if cfg[name] is None else build(cfg[name], name)


def build(section: DictConfig, key: str) -> Any:
    """Build the object of a section of the configuration under this key, or its objects by name.

    Raises:
        CaldpoError: a class cannot be imported, or does not take the section's keys.
        InstantiationException: from an exception inside a constructor.
    """
    try:
        return instantiate(section, _convert_="all")
    except InstantiationException as error:
        message, _, place = str(error).partition("full_key: ")
        place, target = place.strip() or key, re.search(r"target,? (?:got )?'([^']*)'", message)
        cause = error.__cause__
        name = target[1] if target else "?"
        if "Error locating target" in message or "Expected a callable" in message:
            reason = " ".join(str(cause).split())[:200] if cause is not None else "it is no class or function"
            raise CaldpoError(
                f"cannot be imported ({reason})",
                key=f"{place}._target_",
                value=name,
                remedy="name a class as MODULE.CLASS, of a package that is installed here",
            ) from error
        if isinstance(cause, TypeError) and _CALL.search(str(cause)):
            raise CaldpoError(
                f"{name} does not take these keys: {cause}",
                key=place,
                remedy="add the key that is missing, or take the unknown one out",
            ) from error
        raise
