"""Scores generations with the true reward where the data's environment knows it.

Written as ``oracle/*`` at the end of training:

- ``oracle/reward``, ``oracle/reference_reward``: mean true reward of one sample per held-out prompt, from the
  policy and from the reference; ``oracle/win_rate``: share of prompts on which the policy's sample has the
  higher reward, ties counted half.
- ``oracle/kl``: sequence KL(policy || reference), nats, estimated as the mean log-ratio of the policy's samples.
- ``oracle/slope``, ``oracle/pearson``, ``oracle/error``: how beta-scaled implicit rewards of the held-out
  responses match their true rewards (see ``caldpo.environments.agreement``).

An environment that can compute more, such as the exact KL of a tabular policy, adds it under its own names.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from caldpo.config.bounds import NonNegative, NonNegativeInt, PositiveInt
from caldpo.config.signature import validated
from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.environments.agreement import reward_agreement
from caldpo.generation import sample_responses


class OracleEvaluation(pl.Callback):
    """Runs at the end of training, on data that has a known reward; elsewhere it does nothing.

    Args:
        prompts: held-out prompts, one sample each. 0 switches it off.
        max_new_tokens: longest response, tokens.
        temperature: of sampling.
        seed: of the sampling.
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

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.datamodule.oracle is None or not self.prompts or not trainer.is_global_zero:
            return
        metrics = self._samples(trainer.datamodule, module) | self._agreement(trainer.datamodule, module)
        exact = getattr(trainer.datamodule.source, "exact_metrics", None)
        if exact is not None:
            metrics |= exact(module.policy, module.reference.model, module.reward_beta)
        module.write_metrics({f"oracle/{k}": v for k, v in metrics.items()}, module.global_step)

    def _samples(self, data: Any, module: Any) -> dict[str, float]:
        held_out = data.held_out_prompts(self.prompts)
        ids = [h.prompt_ids for h in held_out]
        settings = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "seed": self.seed}
        policy = sample_responses(module.policy, module.tokenizer, ids, **settings)
        reference = sample_responses(module.reference.model, module.tokenizer, ids, **settings)

        def true_rewards(responses: list[list[int]]) -> torch.Tensor:
            texts = module.tokenizer.batch_decode(responses, skip_special_tokens=True)
            return torch.tensor([data.oracle(h.prompt, t) for h, t in zip(held_out, texts, strict=True)])

        ours, theirs = true_rewards(policy), true_rewards(reference)
        pairs = [
            TokenizedPair(p, a, b, None, None, i, "") for i, (p, a, b) in enumerate(zip(ids, policy, reference, strict=True))
        ]
        log_ratios = []
        with torch.no_grad():
            for start in range(0, len(pairs), data.eval_pairs_per_batch):
                batch = collate(pairs[start : start + data.eval_pairs_per_batch], module.tokenizer.pad_token_id)
                log_ratios.append(module.pair_logps(batch.to(module.device), with_reference=True).chosen_log_ratio)
        return {
            "reward": ours.mean().item(),
            "reference_reward": theirs.mean().item(),
            "win_rate": ((ours > theirs).float() + 0.5 * (ours == theirs).float()).mean().item(),
            "kl": torch.cat(log_ratios).mean().item(),
        }

    def _agreement(self, data: Any, module: Any) -> dict[str, float]:
        implicit, true, prompts = [], [], []
        with torch.no_grad():
            for key, batch in enumerate(data.val_dataloader()):
                logps = module.pair_logps(batch.to(module.device), with_reference=True, key=key)
                real = (batch.weight > 0).tolist()
                for ratios, scores in (
                    (logps.chosen_log_ratio, batch.score_chosen),
                    (logps.rejected_log_ratio, batch.score_rejected),
                ):
                    implicit += [r for r, keep in zip(ratios.tolist(), real, strict=True) if keep]
                    true += [s for s, keep in zip(scores.tolist(), real, strict=True) if keep]
                    prompts += [i for i, keep in zip(batch.index.tolist(), real, strict=True) if keep]
        return reward_agreement([module.reward_beta * r for r in implicit], true, prompts)
