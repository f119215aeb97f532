"""Score generations with the true reward, where the data's environment knows it, at the end of training.

Logged as ``oracle/*``, see :mod:`caldpo.metric_definitions`. An environment that can compute more, such as the exact KL
of a tabular policy, adds it under its own names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from caldpo.callbacks.callback_base import PromptSampling, response_texts
from caldpo.data.collate import collate
from caldpo.data.datamodule import HeldOutPrompt, PairDataModule
from caldpo.data.end_tokens import end_tokens
from caldpo.data.pair import TokenizedPair
from caldpo.data.raw_row import ExactSource
from caldpo.distributed.fsdp import is_sharded
from caldpo.environments.reward_agreement import reward_agreement, wins
from caldpo.lightning_module import PreferenceModule
from caldpo.models.adapted_policy import base_model
from caldpo.models.sampling import reference_seed
from caldpo.reference.sample_store import sampling_facts, stored_samples
from caldpo.types import PairLogps


class OracleEvaluation(PromptSampling):
    """Scores the trained policy, on data that has a known reward; elsewhere it does nothing.

    One sample per held-out prompt. The reference's samples have a seed of their own, derived from the policy's.
    """

    def on_trained(self, trainer: pl.Trainer, module: PreferenceModule) -> None:
        data: PairDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if data.oracle is None or not self.takes_part(trainer, module):
            return
        module.policy.eval()  # training is over: no dropout from here on
        metrics = self.score_samples(data, module)
        if data.test_pairs.has_scores:
            with trainer.precision_plugin.forward_context():  # as the log-probs of the reference were computed
                metrics |= _agreement(data, module)
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
        baseline = self.reference_samples(module, held_out)
        policy_rewards, reference_rewards = rewards(samples), rewards(baseline)
        pairs = [
            TokenizedPair(prompt.prompt_ids, response, response, None, None, i, "")
            for i, (prompt, response) in enumerate(zip(held_out, samples, strict=True))
        ]
        log_ratios = torch.cat([logps.chosen_log_ratio for logps in logps_of(data, module, pairs, split="")])
        return {
            "reward": float(policy_rewards.mean()),
            "reference_reward": float(reference_rewards.mean()),
            "win_rate": float(wins(policy_rewards - reference_rewards).mean()),
            "kl": log_ratios.mean().item(),
        }

    def reference_samples(self, module: PreferenceModule, held_out: Sequence[HeldOutPrompt]) -> list[list[int]]:
        """Sample one response to each prompt by the reference: once for all runs that share its cache."""
        reference, seed = module.reference, reference_seed(self.seed)

        def draw() -> list[list[int]]:
            with reference.live() as model:
                return self.sample(model, module, held_out, seed=seed, model_name="reference")

        if reference.cache is None or is_sharded(module.policy):  # sharded weights sample on all ranks together
            return draw()
        facts = sampling_facts(
            module.device,
            [prompt.prompt_ids for prompt in held_out],
            attention=str(base_model(module.policy).config._attn_implementation).removeprefix("caldpo_"),
            ends=end_tokens(module.tokenizer, module.policy),
            padding=module.tokenizer.pad_token_id,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=seed,
        )
        return stored_samples(reference.cache, facts | dict(reference.facts()), draw)


def _agreement(data: PairDataModule, module: PreferenceModule) -> dict[str, float]:
    """Slope, correlation and error of implicit on true rewards, over the responses of the held-out pairs."""
    pairs = data.test_pairs[:]
    logps = logps_of(data, module, pairs, split="test")
    log_ratios = torch.cat([x.chosen_log_ratio for x in logps] + [x.rejected_log_ratio for x in logps])
    true = [p.score_chosen for p in pairs] + [p.score_rejected for p in pairs]
    prompts = [tuple(p.prompt_ids) for p in pairs] * 2
    return reward_agreement((module.reward_beta * log_ratios).tolist(), [t for t in true if t is not None], prompts)


@torch.no_grad()
def logps_of(data: PairDataModule, module: PreferenceModule, pairs: list[TokenizedPair], split: str) -> list[PairLogps]:
    """Log-probs of pairs, batch by batch: all of them on this rank, whatever share its data loader has."""
    size = data.eval_micro_batch_size
    batches = (
        collate(pairs[start : start + size], module.tokenizer.pad_token_id, split=split)
        for start in range(0, len(pairs), size)
    )
    return [module.pair_logps(batch.to(module.device), with_reference=True) for batch in batches]
