"""Scores generations with the true reward where the data's environment knows it.

Written as ``oracle/*`` at the end of training:

- ``oracle/reward``, ``oracle/reference_reward``: mean true reward of one sample per held-out prompt, from the
  policy and from the reference; ``oracle/win_rate``: share of prompts on which the policy's sample has the
  higher reward, ties counted half.
- ``oracle/kl``: sequence KL(policy || reference), nats: the mean log-ratio of the policy's samples.
- ``oracle/slope``, ``oracle/pearson``, ``oracle/spearman``, ``oracle/error``: how implicit rewards (reward_beta x
  log-ratio) of the held-out responses match their true rewards (see ``caldpo.environments.reward_agreement``).

An environment that can compute more, such as the exact KL of a tabular policy, adds it under its own names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from caldpo.config.bounds import NonNegative, NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.collate import collate
from caldpo.data.datamodule import PairDataModule
from caldpo.data.end_tokens import end_tokens, response_text
from caldpo.data.pair import TokenizedPair
from caldpo.data.true_rewards import true_rewards, wins
from caldpo.distributed.fsdp import is_sharded
from caldpo.environments.reward_agreement import reward_agreement
from caldpo.models.sampling import reference_seed, sample_responses
from caldpo.types import PairLogps


class OracleEvaluation(pl.Callback):
    """Runs after training, on data that has a known reward; elsewhere it does nothing.

    Args:
        prompts: held-out prompts, one sample each. 0 switches it off.
        max_new_tokens: longest response, tokens.
        temperature: of sampling.
        seed: of the policy's samples; the reference's have another, derived from it.
    """

    @validated
    def __init__(
        self,
        prompts: NonNegativeInt = 256,
        max_new_tokens: PositiveInt = 64,
        temperature: NonNegative = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.prompts, self.max_new_tokens, self.temperature, self.seed = prompts, max_new_tokens, temperature, seed

    def on_trained(self, trainer: pl.Trainer, module: Any) -> None:
        """Score the trained policy; called once the held-out pairs are evaluated a last time."""
        data: PairDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if data.oracle is None or not self.prompts or not (trainer.is_global_zero or is_sharded(module.policy)):
            return
        module.policy.eval()  # training is over: no dropout from here on
        metrics = self.score_samples(data, module)
        if data.test_pairs.has_scores:
            with trainer.precision_plugin.forward_context():  # as the log-probs of the reference were computed
                metrics |= agreement(data, module)
        exact = getattr(data.source, "exact_metrics", None)
        if exact is not None:
            with module.reference.live() as reference:
                # the optimum is that of the loss's own beta, where it has one
                metrics |= exact(module.policy, reference, module.loss.implicit_reward_beta or module.reward_beta)
        module.write_metrics({f"oracle/{name}": value for name, value in metrics.items()}, module.global_step)

    def score_samples(self, data: PairDataModule, module: Any) -> dict[str, float]:
        """True rewards of policy and reference on the same prompts, and the KL between them."""
        held_out = data.held_out_prompts(self.prompts)
        prompts = [h.prompt_ids for h in held_out]
        ends = end_tokens(module.tokenizer, module.policy)  # the reference's responses end where the policy's do

        def sample(model: PreTrainedModel, seed: int, whose: str) -> list[list[int]]:
            return sample_responses(
                model,
                module.tokenizer,
                prompts,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=seed,
                device=module.device,
                ends=ends,
                whose=f"after {module.global_step} optimiser steps the {whose}'s",
                names=[h.origin or f"prompt {i}" for i, h in enumerate(held_out, 1)],
            )

        def rewards(responses: list[list[int]]) -> NDArray[np.float64]:
            texts = [response_text(module.tokenizer, ids, ends) for ids in responses]
            return true_rewards(data, [str(h.prompt) for h in held_out], texts)

        samples = sample(module.policy, self.seed, "policy")
        with module.reference.live() as reference:
            baseline = sample(reference, reference_seed(self.seed), "reference")
        ours, theirs = rewards(samples), rewards(baseline)
        return {
            "reward": float(ours.mean()),
            "reference_reward": float(theirs.mean()),
            "win_rate": float(wins(ours - theirs).mean()),
            "kl": log_ratios(data, module, prompts, samples).mean().item(),
        }


def log_ratios(data: PairDataModule, module: Any, prompts: list[list[int]], responses: list[list[int]]) -> torch.Tensor:
    """Log-ratio policy/reference of each response, nats, by the engine that training uses."""
    pairs = [
        TokenizedPair(prompt, response, response, None, None, i, "")
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    return torch.cat([logps.chosen_log_ratio for logps in _logps(data, module, pairs, split="")])


def agreement(data: PairDataModule, module: Any) -> dict[str, float]:
    """Slope, correlation and error of implicit on true rewards, over the responses of the held-out pairs."""
    pairs = data.test_pairs[:]
    found = list(_logps(data, module, pairs, split="test"))
    log_ratio = torch.cat([x.chosen_log_ratio for x in found] + [x.rejected_log_ratio for x in found])
    true = [p.score_chosen for p in pairs] + [p.score_rejected for p in pairs]
    prompts = [tuple(p.prompt_ids) for p in pairs] * 2
    return reward_agreement((module.reward_beta * log_ratio).tolist(), [t for t in true if t is not None], prompts)


@torch.no_grad()
def _logps(data: PairDataModule, module: Any, pairs: list[TokenizedPair], split: str) -> Iterator[PairLogps]:
    """Log-probs of pairs, batch by batch: all of them on this rank, whatever share its data loader has."""
    size = data.eval_micro_batch_size
    for start in range(0, len(pairs), size):
        batch = collate(pairs[start : start + size], module.tokenizer.pad_token_id, split=split)
        yield module.pair_logps(batch.to(module.device), with_reference=True)
