"""The LightningModule: policy, frozen reference and loss; training and validation steps and their bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.checkpointing.checkpoint_plan import CheckpointPlan
from caldpo.checkpointing.checkpoint_weights import add_frozen, drop_frozen
from caldpo.distributed.strategy_interface import policy_strategy
from caldpo.errors import CaldpoError
from caldpo.logprobs import LOGITS_CACHE_MIB, LogprobEngine
from caldpo.losses.base import PreferenceLoss
from caldpo.metrics import loss_metrics, pair_metrics
from caldpo.models.dropout import dropout_rates
from caldpo.models.gradient_checkpointing import recomputing
from caldpo.models.model_forward import evaluating
from caldpo.nonfinite.guard import HeldOutGuard, NonFiniteGuard
from caldpo.optim.optimizer_base import OptimizerChoice
from caldpo.reference.moving_reference import MOVED_REFERENCE, MovingReference
from caldpo.reference.reference_base import Reference
from caldpo.reference.tolerances import check_start, largest_and_mean, start_ratios
from caldpo.rollouts.rollout_base import NoRollouts
from caldpo.step_ahead import StepAhead
from caldpo.step_metrics import HeldOutMetrics, StepMetrics
from caldpo.types import PairBatch, PairLogps, assembler
from caldpo.utils.collectives import largest_over_ranks


class PreferenceModule(pl.LightningModule):
    """Trains ``policy`` against ``reference`` with ``loss``.

    Only ``policy`` and ``loss`` are registered submodules. The reference is a plain object, so that no optimiser and
    no checkpoint sees its weights, while a missing *policy* weight in a checkpoint is still an error.

    Args:
        tokenizer: saved with exported weights, and used to generate samples.
        reward_beta: unit of the logged implicit rewards: reward per nat of log-ratio, one for all losses.
        same_start: policy and reference have to start as the same weights, with log-ratios of 0 at step 0.
        metrics_sync_every: optimiser steps whose rows of metrics are fetched from the device at once.
        logits_cache_mib: see :class:`LogprobEngine`.
        recompute_above: tokens above which a micro-batch recomputes its activations; None: none does because of them.
        nonfinite: stops the run at a non-finite loss or gradient, or skips the step; None stops.
        checkpoint_plan: what checkpoints record of the run, and compare at resume.
        rollouts: where the pairs of a step come from; None: from the data.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: Reference,
        loss: PreferenceLoss,
        optim: OptimizerChoice,
        tokenizer: PreTrainedTokenizerBase,
        reward_beta: float,
        same_start: bool = True,
        metrics_sync_every: int = 1,
        logits_cache_mib: int = LOGITS_CACHE_MIB,
        recompute_above: int | None = None,
        nonfinite: NonFiniteGuard | None = None,
        checkpoint_plan: CheckpointPlan | None = None,
        rollouts: NoRollouts | None = None,
    ) -> None:
        super().__init__()
        assert not isinstance(reference, torch.nn.Module), "it would be registered, and saved with every checkpoint"
        self.policy, self.loss = policy, loss
        self.reference, self.optim, self.tokenizer = reference, optim, tokenizer
        self.reward_beta, self.same_start = reward_beta, same_start
        self.engine, self.recompute_above = LogprobEngine(policy, logits_cache_mib), recompute_above
        self.ahead = StepAhead(loss, self._logps_ahead) if loss.depends_on_batch else None
        self.train_metrics, self.held_out = StepMetrics(), HeldOutMetrics()
        self.nonfinite, self.held_out_guard = nonfinite or NonFiniteGuard(), HeldOutGuard()
        # a step is skipped before its update, so that its metrics have to be known
        self.metrics_sync_every = 1 if self.nonfinite.skips else metrics_sync_every
        self.checkpoint_plan, self.rollouts = checkpoint_plan or CheckpointPlan(), rollouts or NoRollouts()
        self.largest_start_ratio = 0.0  # of held-out pairs before the first step, see start_ratios
        self.start_ratios: list[Tensor] = []  # of each held-out batch before the first step
        self.first_step_ratios: list[Tensor] = []  # of the micro-batches of the first step
        self.latest: dict[str, float] = {}  # the last value of every metric
        self.progress: dict[str, float] = {}  # the last fetched values, for the progress bar
        self.failure: CaldpoError | None = None  # why these weights must not be saved
        self.evaluated_at = -1  # optimiser steps at the last evaluation of the held-out pairs
        self.rows_written = 0  # rows of metrics that the loggers got, over the whole run
        self.resumed = False  # the weights have been trained before: they are no longer the reference's

    # -- set-up

    def configure_optimizers(self) -> Any:
        return self.optim.build(self.policy, int(self.trainer.estimated_stepping_batches), scaled=self.scales_gradients)

    @property
    def scales_gradients(self) -> bool:
        """Whether float16 arithmetic scales the gradients; it also skips the steps in which they overflow."""
        return self.trainer.precision == "16-mixed"

    def setup(self, stage: str) -> None:
        # all ranks share the work here, and nothing is trained yet
        policy_strategy(self.trainer.strategy).shard(self.policy)
        self.reference.prepare()

    def configure_model(self) -> None:
        """Do nothing: Lightning requires this hook where weights are sharded, which :meth:`setup` did before.

        Lightning calls it under another default dtype, in which the reference must not be computed.
        """

    def on_fit_start(self) -> None:
        # from_pretrained returns a model in evaluation mode, in which gradient checkpointing is off without a word
        self.policy.train()
        self.train_metrics.start(self.device)

    # -- training

    def pair_logps(self, batch: PairBatch, *, with_reference: bool) -> PairLogps:
        """Compute log-probs (nats) of a batch by the policy and, where wanted, by the reference."""
        assemble, alignment = self._assembler(batch, with_reference), self.loss.alignment
        if alignment is None:
            return assemble(*self.engine(batch), slice(None))
        chosen, rejected, *own = self.engine.aligned(batch, alignment)
        return replace(assemble(chosen, rejected, slice(None)), chosen_alignment=own[0], rejected_alignment=own[1])

    def _logps_ahead(self, batch: PairBatch) -> PairLogps:
        batch = self.loss.weighed(batch, self.global_step)
        with evaluating(self.policy):
            return self.pair_logps(batch, with_reference=self.loss.needs_reference)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        if isinstance(self.reference, MovingReference):
            self.reference.follow(self.policy, self.global_step)
        alone = self.trainer.world_size == 1
        known = None if self.ahead is None else self.ahead.take(batch, alone=alone)
        if batch.filler and alone:  # it computes only where other ranks wait for its gradient
            return torch.zeros((), device=self.device, requires_grad=True)
        batch, drawn = self.rollouts.draw(batch, batch_idx, self)
        batch = self.loss.weighed(batch, self.global_step)
        if known is None:
            assemble = self._assembler(batch, with_reference=self.loss.needs_reference)
        else:
            assemble = assembler(batch, (known.reference_chosen, known.reference_rejected), known.of_step)
        # Lightning divides by the accumulation and averages gradients over ranks; the loss is the mean over the pairs
        # of the whole optimiser step, whatever their micro-batches.
        micro_batches = self.trainer.accumulate_grad_batches * self.trainer.world_size
        scale = micro_batches / batch.pairs_in_step(micro_batches)

        def summed_loss(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
            loss = self.loss(assemble(chosen, rejected, rows)).loss
            return torch.where(batch.weight[rows] > 0, loss, 0).sum() * scale

        # before the first update policy and reference are the same, but for the policy's dropout
        fresh = self.global_step == 0 and not self.resumed and self.same_start and self.loss.needs_reference
        at_start = None
        if fresh and dropout_rates(self.policy):
            with evaluating(self.policy):
                at_start = self.engine(batch)
        with recomputing(self.policy, self.recompute_above is not None and batch.tokens > self.recompute_above):
            total, chosen, rejected = self.engine.loss(batch, summed_loss)
        with torch.no_grad():
            logps = assemble(chosen, rejected, slice(None))
            values = loss_metrics(self.loss(logps))
            self.train_metrics.add(values | pair_metrics(logps, self.reward_beta) | drawn, batch)
            self.nonfinite.record(batch, logps, values)
            if fresh:
                started = logps if at_start is None else assemble(*at_start, slice(None))
                self.first_step_ratios.append(start_ratios(started, batch.weight))
        return total

    def _assembler(self, batch: PairBatch, with_reference: bool) -> Callable[[Tensor, Tensor, slice], PairLogps]:
        return assembler(batch, self.reference.logps(batch) if with_reference else (None, None))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        gradients = policy_strategy(self.trainer.strategy).gradients(self.policy)
        norm = gradients.norm()
        # The metrics were measured before the update: they belong to the weights after `global_step` updates.
        self.train_metrics.close(self.global_step, norm, gradient_clip_val, float(optimizer.param_groups[0]["lr"]))
        self.nonfinite.end_step(self.global_step)
        if len(self.train_metrics.pending) >= self.metrics_sync_every:
            # before the update: with a fetch at every step, no non-finite gradient meets the weights
            self.fetch_rows(about_to_update=self.global_step)
        if self.ahead is not None:
            self.ahead.end_step()
        if gradient_clip_val is not None:
            gradients.clip(gradient_clip_val, norm)

    def fetch_rows(self, about_to_update: int | None = None, *, alone: bool = False) -> None:
        """Fetch the rows that are still on the device, check them and log each at its own step.

        Args:
            about_to_update: the step whose update is still to come, if any.
            alone: other ranks may not call: no check that needs all ranks is made.

        Raises:
            CaldpoError: a loss or a gradient was not finite, naming the first such step.
        """
        rows = self.train_metrics.fetch()
        if rows and self.first_step_ratios and not alone:
            ratios, self.first_step_ratios = largest_over_ranks(*largest_and_mean(self.first_step_ratios)), []
            try:
                self._check_start(*ratios, of="training")
            except CaldpoError as error:
                self.failure = error
        for step, metrics in rows:
            if self.failure is None and not alone:
                self.failure = self.nonfinite.check(self, step, metrics, before_update=step == about_to_update)
            if self.nonfinite.skips or self.scales_gradients:
                metrics["skipped_steps"] = float(self.nonfinite.skipped)
            self.write_metrics(metrics, step)
            self.progress = {"loss": metrics["loss"]}
            shown = next((name for name in ("log_ratios/chosen", "logps/chosen") if name in metrics), None)
            self.progress |= {} if shown is None else {"chosen": metrics[shown]}  # unpaired rows may be all undesirable
        if self.failure is not None:
            raise self.failure  # again at every attempt to continue or to save: the weights may be non-finite

    def require_good_weights(self) -> None:
        """Refuse to save weights that met a non-finite gradient, or that did not start as the reference.

        A step that was caught before its update is no obstacle: the weights are those of the step before.
        """
        try:
            self.fetch_rows()
        except CaldpoError:
            if not self.caught_before_update:
                raise

    @property
    def caught_before_update(self) -> bool:
        """Whether a non-finite step stopped the run before its update, so that the weights are good."""
        return self.failure is not None and self.failure is self.nonfinite.caught

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.require_good_weights()
        drop_frozen(checkpoint["state_dict"], self)
        if isinstance(self.reference, MovingReference):
            checkpoint[MOVED_REFERENCE] = self.reference.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # else the strategy has loaded its shards into the weights
            add_frozen(checkpoint["state_dict"], self)
        if isinstance(self.reference, MovingReference):
            self.reference.load_state_dict(checkpoint[MOVED_REFERENCE])

    def on_train_end(self) -> None:
        self.fetch_rows()

    # -- held-out pairs

    def on_validation_start(self) -> None:
        self.fetch_rows()
        self.train_metrics.pause()

    def on_validation_end(self) -> None:
        self.train_metrics.resume()

    def on_validation_epoch_start(self) -> None:
        self.held_out.reset(self.device)
        self.held_out_guard.reset()
        if self.ahead is not None:
            self.ahead.start_held_out()

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        # With the reference's log-probs whatever the loss, so that the curves of all losses compare.
        if self.ahead is not None:  # the loss needs the pairs that are still to come
            logps = self.ahead.add_held_out(batch, lambda pairs: self.pair_logps(pairs, with_reference=True))
        else:
            logps = self.pair_logps(batch, with_reference=True)
            self._add_held_out(batch, logps)
        if self.global_step == 0 and not self.resumed:
            self.start_ratios.append(start_ratios(logps, batch.weight))  # fetched together at the end

    def _add_held_out(self, batch: PairBatch, logps: PairLogps) -> None:
        values = loss_metrics(self.loss(logps)) | pair_metrics(logps, self.reward_beta)
        self.held_out.add(values, batch)
        self.held_out_guard.record(batch, logps, values)

    def require_finite_held_out(self) -> None:
        """Refuse non-finite means of this evaluation, naming rows and terms; all ranks have to call."""
        for batch, logps in self.ahead.held_out() if self.ahead is not None else ():
            self._add_held_out(batch, logps)
        if failure := self.held_out_guard.check(self, self.held_out.fetch()):
            self.failure = failure
            raise failure

    def on_validation_epoch_end(self) -> None:
        self.require_finite_held_out()
        if self.start_ratios:
            # all ranks stop, or none: the others would wait for those that stopped
            self.largest_start_ratio, mean = largest_over_ranks(*largest_and_mean(self.start_ratios))
            self.start_ratios.clear()
            if self.same_start:
                self._check_start(self.largest_start_ratio, mean, of="held-out")
        metrics = {f"val/{name}": value for name, value in self.held_out.fetch().items()}
        self.write_metrics(metrics, self.global_step)
        self.evaluated_at = self.global_step
        self.log_dict(metrics, logger=False, sync_dist=True)  # for callbacks that watch a metric

    def _check_start(self, largest: float, mean: float, of: Literal["held-out", "training"]) -> None:
        check_start(largest, mean, self.policy.dtype, self.reference.dtype, self.reference.rounding, of)

    def write_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics measured with the weights after ``step`` optimiser steps, and keep the latest of each."""
        self.latest.update(metrics)
        self.rows_written += 1
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    # -- state of a resumed run

    def training_state(self) -> dict[str, Any]:
        """Return counters and last values as plain numbers, without waiting for the device.

        ``rows`` counts those that still have to be fetched; ``latest`` and ``clipped_steps`` do not have them yet.
        """
        return {
            "rows": self.rows_written + len(self.train_metrics.pending),
            "latest": dict(self.latest),
            "evaluated_at": self.evaluated_at,
            "logged_steps": self.train_metrics.rows,
            "clipped_steps": self.train_metrics.clipped,
            "skipped_steps": self.nonfinite.skipped,
            "largest_start_ratio": self.largest_start_ratio,
        }

    def restore_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned, with weights that are no longer the reference's."""
        self.rows_written, self.latest = int(state["rows"]), dict(state["latest"])
        self.evaluated_at, self.largest_start_ratio = int(state["evaluated_at"]), float(state["largest_start_ratio"])
        self.train_metrics.rows, self.train_metrics.clipped = int(state["logged_steps"]), int(state["clipped_steps"])
        self.nonfinite.skipped = int(state["skipped_steps"])
        self.resumed = True
