"""Score generations with the true reward, where the data's environment knows it.

Logged as ``oracle/*`` at the end of training:

- ``oracle/reward``, ``oracle/reference_reward``: mean true reward of one sample per held-out prompt, from the
  policy and from the reference; ``oracle/win_rate``: share of prompts on which the policy's sample has the
  higher reward, ties counted half.
- ``oracle/kl``: sequence KL(policy || reference), nats: the mean log-ratio of the policy's samples.
- ``oracle/slope``, ``oracle/pearson``, ``oracle/spearman``, ``oracle/error``: how implicit rewards (reward_beta x
  log-ratio) of the held-out responses match their true rewards (see ``caldpo.environments.reward_agreement``).

An environment that can compute more, such as the exact KL of a tabular policy, adds it under its own names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from caldpo.callbacks.callback_base import PromptSampling, response_texts
from caldpo.config.bounds import NonNegative, NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.collate import collate
from caldpo.data.datamodule import HeldOutPrompt, PairDataModule
from caldpo.data.pair import TokenizedPair
from caldpo.data.raw_row import ExactSource
from caldpo.environments.reward_agreement import reward_agreement, wins
from caldpo.lightning_module import PreferenceModule
from caldpo.models.sampling import reference_seed
from caldpo.types import PairLogps


class OracleEvaluation(PromptSampling):
    """Scores the trained policy, on data that has a known reward; elsewhere it does nothing.

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
        super().__init__(prompts, max_new_tokens, temperature, seed)

    def on_trained(self, trainer: pl.Trainer, module: PreferenceModule) -> None:
        data: PairDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if data.oracle is None or not self.takes_part(trainer, module):
            return
        module.policy.eval()  # training is over: no dropout from here on
        metrics = self.score_samples(data, module)
        if data.test_pairs.has_scores:
            with trainer.precision_plugin.forward_context():  # as the log-probs of the reference were computed
                metrics |= agreement(data, module)
        if isinstance(data.source, ExactSource):
            with module.reference.live() as reference:
                # the optimum is that of the loss's own beta, where it has one
                beta = module.loss.implicit_reward_beta or module.reward_beta
                metrics |= data.source.exact_metrics(module.policy, reference, beta)
        module.write_metrics({f"oracle/{name}": value for name, value in metrics.items()}, module.global_step)

    def score_samples(self, data: PairDataModule, module: PreferenceModule) -> dict[str, float]:
        """Compare true rewards of policy and reference on the same prompts, and estimate the KL between them."""
        held_out = data.held_out_prompts(self.prompts)

        def rewards(responses: Sequence[list[int]]) -> NDArray[np.float64]:
            return data.true_rewards([str(h.prompt) for h in held_out], response_texts(module, responses))

        samples = self.sample(module.policy, module, held_out, seed=self.seed)
        with module.reference.live() as reference:
            baseline = self.sample(reference, module, held_out, seed=reference_seed(self.seed), model_name="reference")
        policy_rewards, reference_rewards = rewards(samples), rewards(baseline)
        return {
            "reward": float(policy_rewards.mean()),
            "reference_reward": float(reference_rewards.mean()),
            "win_rate": float(wins(policy_rewards - reference_rewards).mean()),
            "kl": log_ratios(data, module, held_out, samples).mean().item(),
        }


def log_ratios(
    data: PairDataModule, module: PreferenceModule, prompts: Sequence[HeldOutPrompt], responses: Sequence[list[int]]
) -> torch.Tensor:
    """Log-ratio policy/reference of each response, nats, shape ``(responses,)``, by the engine that training uses."""
    pairs = [
        TokenizedPair(prompt.prompt_ids, response, response, None, None, i, "")
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    return torch.cat([logps.chosen_log_ratio for logps in _logps(data, module, pairs, split="")])


def agreement(data: PairDataModule, module: PreferenceModule) -> dict[str, float]:
    """Slope, correlation and error of implicit on true rewards, over the responses of the held-out pairs."""
    pairs = data.test_pairs[:]
    logps = list(_logps(data, module, pairs, split="test"))
    log_ratio = torch.cat([x.chosen_log_ratio for x in logps] + [x.rejected_log_ratio for x in logps])
    true = [p.score_chosen for p in pairs] + [p.score_rejected for p in pairs]
    prompts = [tuple(p.prompt_ids) for p in pairs] * 2
    return reward_agreement((module.reward_beta * log_ratio).tolist(), [t for t in true if t is not None], prompts)


@torch.no_grad()
def _logps(
    data: PairDataModule, module: PreferenceModule, pairs: list[TokenizedPair], split: str
) -> Iterator[PairLogps]:
    """Log-probs of pairs, batch by batch: all of them on this rank, whatever share its data loader has."""
    size = data.eval_micro_batch_size
    for start in range(0, len(pairs), size):
        batch = collate(pairs[start : start + size], module.tokenizer.pad_token_id, split=split)
        yield module.pair_logps(batch.to(module.device), with_reference=True)
