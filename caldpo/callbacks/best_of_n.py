"""Best-of-n of the reference at the end of training: of n samples per prompt the one that a reward likes best.

Picked by the true reward it is what can be had without any training; picked by the trained policy's implicit reward,
its log-ratio (Rafailov et al. 2023, arXiv 2305.18290), it shows what the policy is worth as a reward model. Best-of-n
is at most ``log n - (n - 1) / n`` nats from the reference (Beirami et al. 2024, "Theoretical guarantees on the
best-of-n alignment policy", arXiv 2401.01879), and about that where each response is unlikely and no two are equally
good.
"""

from __future__ import annotations

import math

import numpy as np
import pytorch_lightning as pl
import torch

from caldpo.callbacks.callback_base import PromptSampling, response_texts
from caldpo.callbacks.true_reward import logps_of
from caldpo.config.bounds import NonNegative, NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.datamodule import PairDataModule
from caldpo.data.pair import TokenizedPair
from caldpo.lightning_module import PreferenceModule
from caldpo.models.sampling import reference_seed


class BestOfN(PromptSampling):
    """Samples the reference ``n`` times per held-out prompt, on data that has a known reward; else it does nothing."""

    @validated
    def __init__(
        self,
        prompts: NonNegativeInt,
        n: PositiveInt = 16,
        max_new_tokens: PositiveInt = 64,
        temperature: NonNegative = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(prompts, max_new_tokens, temperature, seed)
        self.n = n

    def on_trained(self, trainer: pl.Trainer, module: PreferenceModule) -> None:
        data: PairDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if data.oracle is None or not self.takes_part(trainer, module):
            return
        module.policy.eval()
        with trainer.precision_plugin.forward_context():
            metrics = self.score(data, module)
        module.write_metrics({f"best_of_n/{name}": value for name, value in metrics.items()}, module.global_step)

    def score(self, data: PairDataModule, module: PreferenceModule) -> dict[str, float]:
        """Compute the mean true reward of the samples picked by each of the two rewards, and the bound of the KL."""
        held_out = [prompt for prompt in data.held_out_prompts(self.prompts) for _ in range(self.n)]
        with module.reference.live() as reference:
            seed = reference_seed(self.seed)
            samples = self.sample(reference, module, held_out, seed=seed, model_name="reference")
        true = data.true_rewards([str(h.prompt) for h in held_out], response_texts(module, samples))
        pairs = [
            TokenizedPair(prompt.prompt_ids, response, response, None, None, i, "")
            for i, (prompt, response) in enumerate(zip(held_out, samples, strict=True))
        ]
        ratios = torch.cat([logps.chosen_log_ratio for logps in logps_of(data, module, pairs, split="")])
        implicit = ratios.double().cpu().numpy()
        return {
            "reward": picked(true, by=true, n=self.n),
            "implicit_pick_reward": picked(true, by=implicit, n=self.n),
            "kl_bound": math.log(self.n) - (self.n - 1) / self.n,
        }


def picked(rewards: np.ndarray, *, by: np.ndarray, n: int) -> float:
    """Mean reward of the best of each ``n`` in a row, the first of equally good ones."""
    best = by.reshape(-1, n).argmax(axis=1)
    return float(np.take_along_axis(rewards.reshape(-1, n), best[:, None], axis=1).mean())
