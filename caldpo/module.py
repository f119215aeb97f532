"""The LightningModule: policy, frozen reference and loss. Steps and their bookkeeping only."""

from __future__ import annotations

from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.errors import CaldpoError
from caldpo.logprobs import pair_logprobs, response_tokens
from caldpo.losses.base import PreferenceLoss
from caldpo.metrics import WeightedMeans, loss_metrics, pair_metrics
from caldpo.progress import StepLog
from caldpo.reference.base import Reference
from caldpo.types import PairBatch, PairLogps


class OptimizerSpec(Protocol):
    """Builds the optimiser and its schedule for a policy."""

    def build(self, policy: torch.nn.Module, total_steps: int) -> dict[str, Any]:
        """Lightning's optimiser dictionary."""
        ...


class PreferenceModule(pl.LightningModule):
    """Trains ``policy`` against ``reference`` with ``loss``.

    The reference is held outside the module tree: no optimiser sees it and no checkpoint holds it, while
    a missing *policy* weight in a checkpoint is still an error.

    Args:
        policy: the causal language model that is trained.
        reference: log-probs of the frozen reference.
        loss: one value per pair.
        optim: builds optimiser and schedule.
        tokenizer: saved beside exported weights, and used to generate samples.
        reward_beta: factor from log-ratio (nats) to the logged implicit reward.
        same_start: whether policy and reference have to start as the same weights, so that step 0 must show
            log-ratios of 0.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: Reference,
        loss: PreferenceLoss,
        optim: OptimizerSpec,
        tokenizer: PreTrainedTokenizerBase,
        reward_beta: float,
        same_start: bool = True,
    ) -> None:
        super().__init__()
        self.policy, self.loss = policy, loss
        for name, value in {
            "reference": reference,
            "optim": optim,
            "tokenizer": tokenizer,
            "train_log": StepLog(),
            "held_out": WeightedMeans(),
        }.items():
            object.__setattr__(self, name, value)  # unregistered: neither state nor parameters of this module
        self.reward_beta, self.same_start = reward_beta, same_start
        self.largest_start_ratio = 0.0
        self.latest: dict[str, float] = {}  # the last value of every metric
        self.evaluated_at = -1  # optimiser steps at the last evaluation of the held-out pairs

    reference: Reference
    optim: OptimizerSpec
    tokenizer: PreTrainedTokenizerBase
    train_log: StepLog
    held_out: WeightedMeans

    # -- set-up

    def configure_optimizers(self) -> Any:
        return self.optim.build(self.policy, int(self.trainer.estimated_stepping_batches))

    def on_fit_start(self) -> None:
        # from_pretrained returns a model in evaluation mode, in which gradient checkpointing is silently off
        self.policy.train()
        self.train_log.start(self.device)

    # -- training

    def pair_logps(self, batch: PairBatch, *, with_reference: bool, key: int | None = None) -> PairLogps:
        """Log-probs of a batch; ``key`` lets the reference remember a batch of a fixed set."""
        policy = pair_logprobs(self.policy, batch)
        reference = self.reference.logps(batch, key) if with_reference else (None, None)
        tokens = response_tokens(batch)
        return PairLogps(
            policy_chosen=policy[0],
            policy_rejected=policy[1],
            reference_chosen=reference[0],
            reference_rejected=reference[1],
            chosen_tokens=tokens[0],
            rejected_tokens=tokens[1],
            score_chosen=batch.score_chosen,
            score_rejected=batch.score_rejected,
        )

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        logps = self.pair_logps(batch, with_reference=self.loss.needs_reference)
        output = self.loss(logps)
        values = loss_metrics(output) | pair_metrics(logps, self.reward_beta)
        self.train_log.add(values, batch)
        # Lightning divides by the accumulation and averages gradients over ranks; the mean wanted is over
        # the pairs of the whole optimiser step, however they fell into micro-batches.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / batch.step_pairs
        return torch.where(batch.weight > 0, output.loss, 0).sum() * scale

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        trained = [p for p in self.policy.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in trained if p.grad is not None])
        scaled = self.trainer.precision == "16-mixed"  # its scaler skips steps with non-finite gradients
        if not scaled and not norm.isfinite():
            raise CaldpoError(
                f"the gradient is not a number at optimiser step {self.global_step}"
                f" (means of the step: {self.train_log.describe()})",
                remedy="lower optim.lr, raise loss.beta, or use trainer.precision=32-true",
            )
        self.train_log.before_update(norm, gradient_clip_val, optimizer.param_groups[0]["lr"])
        if gradient_clip_val is not None:
            clip_grads_with_norm_(trained, gradient_clip_val, norm)  # by the norm at hand, not another of its own

    def on_train_batch_end(self, outputs: Any, batch: PairBatch, batch_idx: int) -> None:
        if self.global_step == self.train_log.step:
            return  # inside an accumulation window
        # The metrics were measured before the update: they belong to the weights after `step` updates.
        step, self.train_log.step = self.train_log.step, self.global_step
        metrics = self.train_log.finish()
        self.write_metrics(metrics, step)
        shown = {"loss": metrics["loss"], "chosen": metrics.get("log_ratios/chosen", metrics["logps/chosen"])}
        self.log_dict(shown, prog_bar=True, logger=False)

    # -- held-out pairs

    def on_validation_start(self) -> None:
        self.train_log.pause()

    def on_validation_end(self) -> None:
        self.train_log.resume()

    def on_validation_epoch_start(self) -> None:
        self.held_out.reset()
        self.held_out.to(self.device)

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        # The reference is asked whatever the loss, so that the curves of all losses compare.
        logps = self.pair_logps(batch, with_reference=True, key=batch_idx)
        values = loss_metrics(self.loss(logps)) | pair_metrics(logps, self.reward_beta)
        self.held_out.update(values, batch.weight)
        if self.global_step == 0:
            moved = torch.stack([logps.chosen_log_ratio.abs(), logps.rejected_log_ratio.abs()])
            size = 1 + torch.stack([logps.policy_chosen.abs(), logps.policy_rejected.abs()])
            largest = torch.where(batch.weight > 0, moved / size, 0).max().item()
            self.largest_start_ratio = max(self.largest_start_ratio, largest)

    def on_validation_epoch_end(self) -> None:
        if self.global_step == 0 and self.same_start:
            check_start(self.largest_start_ratio, self.policy.dtype, self.reference.model.dtype)
        metrics = {f"val/{name}": value for name, value in self.held_out.floats().items()}
        self.write_metrics(metrics, self.global_step)
        self.evaluated_at = self.global_step
        self.log_dict(metrics, logger=False, sync_dist=True)  # for callbacks that watch a metric

    def write_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics measured with the weights after ``step`` optimiser steps, and keep the latest of each."""
        self.latest.update(metrics)
        for logger in self.loggers:
            logger.log_metrics(metrics, step)


def check_start(largest: float, policy: torch.dtype, reference: torch.dtype) -> None:
    """Log-ratios have to be 0 before the first step, up to rounding relative to ``1 + |log-prob|``.

    In one dtype, policy and reference do the same arithmetic and agree almost to the last digit. In two, the
    log-probs of long responses differ by rounding, which is noise in every log-ratio of the run.

    Raises:
        CaldpoError: they are not, so the reference is not the model that the policy starts from.
    """
    if largest > (1e-4 if policy == reference else 2e-2):
        raise CaldpoError(
            f"policy ({policy}) and reference ({reference}) differ before the first step: log-ratios up to"
            f" {largest:.2g} of the log-probs, where 0 is expected",
            remedy="start the policy from the reference's weights, or say that another reference is meant by"
            " reference.differs=true",
        )
