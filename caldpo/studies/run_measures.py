"""Measure a run of a study as it ends, in its own process: what a person could see, and what is true.

Written to ``study_measures.json`` in the run's folder, prompt by prompt and pair by pair, so that intervals can be
drawn over seeds and prompts. Log-ratios, KL and entropy are in nats, sums over a response.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from scipy.special import expit

from caldpo.callbacks.callback_base import response_texts
from caldpo.callbacks.true_reward import OracleEvaluation, logps_of
from caldpo.config.bounds import NonNegativeInt, Positive, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.datamodule import HeldOutPrompt, PairDataModule
from caldpo.data.pair import TokenizedPair
from caldpo.data.raw_row import ExactSource
from caldpo.environments.reward_agreement import reward_agreement, wins
from caldpo.errors import CaldpoError
from caldpo.evaluation.calibration_error import calibration_error
from caldpo.lightning_module import PreferenceModule
from caldpo.types import PairLogps
from caldpo.utils.atomic_io import write_text

MEASURES = "study_measures.json"
Values = NDArray[np.float64]
_DIGITS = 6  # of what is stored
_SIDES = ("chosen", "rejected")


class RunMeasures(OracleEvaluation):
    """Measures the trained policy, and on the way its true reward and KL: the frontier of the run.

    Args:
        prompts: held-out prompts.
        samples: of each prompt, at temperature 1, since only such samples estimate a KL; measures are their means.
        max_new_tokens: longest response, tokens.
        seed: of the sampling, and of the judge's mistakes.
        best_of: draw so many samples in place of each, and take the one of the highest true reward: best-of-n of the
            reference, for a policy that is still at its start. Its KL is then the bound log n - (n - 1) / n, and what
            needs log-probs is not measured.
        frontier_prompts: held-out prompts of each point of the frontier; 0: no frontier.
        judge_sharpness: the judge prefers a response with probability ``sigmoid(this x gap of true rewards)``.
        bins: of the calibration error.
    """

    @validated
    def __init__(
        self,
        prompts: PositiveInt,
        samples: PositiveInt = 1,
        best_of: PositiveInt = 1,
        max_new_tokens: PositiveInt = 64,
        seed: NonNegativeInt = 0,
        frontier_prompts: NonNegativeInt = 0,
        judge_sharpness: Positive = 2.0,
        bins: PositiveInt = 10,
    ) -> None:
        super().__init__(prompts=prompts, max_new_tokens=max_new_tokens, temperature=1.0, seed=seed)
        self.samples, self.best_of = samples, best_of
        self.frontier_prompts, self.judge_sharpness, self.bins = frontier_prompts, judge_sharpness, bins
        self.frontier: dict[int, dict[str, float]] = {}  # by optimiser step

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: PreferenceModule) -> None:  # type: ignore[override]
        data: PairDataModule = trainer.datamodule  # type: ignore[attr-defined]
        step = module.global_step
        # before the first step the policy is the reference, and the last point is that of the final samples
        if not self.frontier_prompts or step in (0, trainer.max_steps) or not self.takes_part(trainer, module):
            return
        module.require_finite_held_out()
        held_out = self._prompts(data, self.frontier_prompts)
        samples = self.sample(module.policy, module, held_out, seed=self.seed)
        log_ratios = self._log_ratios(data, module, held_out, samples, samples)[0]
        rewards = self._rewards(data, module, held_out, samples)
        self.frontier[step] = {"kl": float(log_ratios.mean()), "reward": float(rewards.mean())}

    def on_trained(self, trainer: pl.Trainer, module: PreferenceModule) -> None:
        data: PairDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if data.oracle is None:
            raise CaldpoError(
                f"the true reward of a response is unknown on this data ({data.source.name})",
                key="data",
                remedy="a study needs data with a known reward, such as data=reviews",
            )
        if not self.takes_part(trainer, module):
            return
        module.policy.eval()  # training is over: no dropout from here on
        held_out = self._prompts(data, self.prompts)
        samples = self._policy_samples(data, module, held_out)
        baseline = self.reference_samples(module, held_out)
        with trainer.precision_plugin.forward_context():  # as the log-probs of the reference were computed
            of_samples = self._of_samples(data, module, held_out, samples, baseline)
            # best-of-n is no policy whose log-probs are known: those here are of the one that it samples
            is_policy = self.best_of == 1
            of_pairs, scalars = self._of_pairs(data, module) if is_policy else ({}, {})
        if isinstance(data.source, ExactSource) and is_policy:
            with module.reference.live() as reference:
                # the optimum is that of the loss's own beta, where it has one
                beta = module.loss.implicit_reward_beta or module.reward_beta
                scalars |= data.source.exact_metrics(module.policy, reference, beta)
        scalars |= {f"distinct_{n}": distinct(samples, n) for n in (1, 2)}
        scalars["reference_distinct_2"] = distinct(baseline, 2)
        content = {
            "scalars": {name: _rounded(value) for name, value in scalars.items()},
            "by_prompt": {name: _rounded(values) for name, values in of_samples.items()},
            "by_pair": {name: _rounded(values) for name, values in of_pairs.items()},
            "frontier": self._path(module.global_step, of_samples) if self.frontier_prompts else [],
        }
        write_text(Path(trainer.default_root_dir) / MEASURES, json.dumps(content) + "\n")

    def _of_samples(
        self,
        data: PairDataModule,
        module: PreferenceModule,
        held_out: Sequence[HeldOutPrompt],
        samples: Sequence[list[int]],
        baseline: Sequence[list[int]],
    ) -> dict[str, Values]:
        """Measure samples of policy and reference, means of each prompt, ``(prompts,)``."""
        reward, reference_reward = (self._rewards(data, module, held_out, ids) for ids in (samples, baseline))
        own, of_reference, own_logps = self._log_ratios(data, module, held_out, samples, baseline)
        gap = reward - reference_reward
        # the same draws for every loss with this seed: a judge that errs, on the same prompts
        draws = np.random.default_rng(self.seed).random(len(gap))
        of_samples = {
            "reward": reward,
            "reference_reward": reference_reward,
            "win_rate": wins(gap),
            "judge_win_rate": (draws < expit(self.judge_sharpness * gap)).astype(np.float64),
            "kl": own,  # KL(policy || reference), by the policy's samples
            "reverse_kl": -of_reference,  # KL(reference || policy), by the reference's samples
            "entropy": -own_logps,
            "length": np.array([len(ids) for ids in samples], dtype=np.float64),
        }
        if self.best_of > 1:  # Beirami et al. 2024, arXiv 2401.01879; the samples' own log-ratios are the policy's
            of_samples["kl"] = np.full(len(reward), math.log(self.best_of) - (self.best_of - 1) / self.best_of)
            del of_samples["reverse_kl"], of_samples["entropy"]
        return {name: values.reshape(-1, self.samples).mean(axis=1) for name, values in of_samples.items()}

    def _policy_samples(
        self, data: PairDataModule, module: PreferenceModule, held_out: Sequence[HeldOutPrompt]
    ) -> list[list[int]]:
        """One sample for each entry of ``held_out``: of ``best_of`` the one with the highest true reward."""
        drawn = [prompt for prompt in held_out for _ in range(self.best_of)]
        samples = self.sample(module.policy, module, drawn, seed=self.seed)
        if self.best_of == 1:
            return samples
        best = self._rewards(data, module, drawn, samples).reshape(-1, self.best_of).argmax(axis=1)
        return [samples[row * self.best_of + int(place)] for row, place in enumerate(best)]

    def _of_pairs(self, data: PairDataModule, module: PreferenceModule) -> tuple[dict[str, Values], dict[str, float]]:
        """Measure the held-out pairs, ``(pairs,)``, and how their implicit rewards are calibrated.

        Rewards are those of the loss's own derivation; where it has none, accuracy is that of the log-ratios, and no
        probability is claimed that could be calibrated.
        """
        pairs = data.test_pairs[:]
        batches = logps_of(data, module, pairs, split="test")
        chosen, rejected = (_joined(batches, side) for side in ("chosen_log_ratio", "rejected_log_ratio"))
        own = [module.loss.implicit_rewards(logps) for logps in batches]
        claimed = [rewards for rewards in own if rewards is not None]
        implicit = [chosen, rejected]
        if has_own := len(claimed) == len(own):
            implicit = [torch.cat([rewards[side] for rewards in claimed]).double().cpu().numpy() for side in (0, 1)]
        margins = implicit[0] - implicit[1]
        # of the environment itself: scores of the data may be noisy, or quantiles
        asked = [str(pair.prompt) for pair in data.test_sources]
        true = [data.true_rewards(asked, [getattr(p, side) for p in data.test_sources]) for side in _SIDES]
        gaps = true[0] - true[1]
        of_pairs = {
            "accuracy": wins(margins),  # against the labels, which may be noisy
            "accuracy_of_truth": wins(np.sign(gaps) * np.sign(margins)),
            "chosen_log_ratio": chosen,
            "rejected_log_ratio": rejected,
            "displaced": (chosen < 0).astype(np.float64),
        }
        if not has_own:
            return of_pairs, {}
        of_pairs["brier"] = expit(-margins) ** 2  # Brier 1950, of the probability that the label is as it is
        agreement = reward_agreement(np.concatenate(implicit).tolist(), np.concatenate(true).tolist(), asked * 2)
        return of_pairs, {"slope": agreement["slope"], "calibration_error": calibration_error(margins, self.bins)}

    def _log_ratios(
        self,
        data: PairDataModule,
        module: PreferenceModule,
        held_out: Sequence[HeldOutPrompt],
        first: Sequence[list[int]],
        second: Sequence[list[int]],
    ) -> tuple[Values, Values, Values]:
        """Log-ratios policy/reference of two responses to each prompt, and the policy's log-probs of the first."""
        pairs = [
            TokenizedPair(prompt.prompt_ids, one, other, None, None, row, "")
            for row, (prompt, one, other) in enumerate(zip(held_out, first, second, strict=True))
        ]
        batches = logps_of(data, module, pairs, split="")
        ratios = (_joined(batches, side) for side in ("chosen_log_ratio", "rejected_log_ratio", "policy_chosen"))
        own, other, logps = ratios
        return own, other, logps

    def _prompts(self, data: PairDataModule, count: int) -> list[HeldOutPrompt]:
        """Each prompt as often as it is sampled."""
        return [prompt for prompt in data.held_out_prompts(count) for _ in range(self.samples)]

    def _rewards(
        self,
        data: PairDataModule,
        module: PreferenceModule,
        held_out: Sequence[HeldOutPrompt],
        responses: Sequence[list[int]],
    ) -> Values:
        return data.true_rewards([str(prompt.prompt) for prompt in held_out], response_texts(module, responses))

    def _path(self, last: int, of_samples: dict[str, Values]) -> list[dict[str, float]]:
        """List the points of the frontier: the reference, the evaluations on the way, the end."""
        start = {"kl": 0.0, "reward": float(of_samples["reference_reward"].mean())}
        end = {name: float(of_samples[name].mean()) for name in ("kl", "reward")}
        points = {0: start, **self.frontier, last: end}
        return [{"step": step, **{k: _rounded(v) for k, v in points[step].items()}} for step in sorted(points)]


def distinct(responses: Sequence[Sequence[int]], n: int) -> float:
    """Share of different ones among all n-grams of tokens (distinct-n; Li et al. 2016, arXiv 1510.03055)."""
    grams = [tuple(ids[i : i + n]) for ids in responses for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def _joined(batches: Sequence[PairLogps], side: str) -> Values:
    joined: Values = torch.cat([getattr(logps, side) for logps in batches]).double().cpu().numpy()
    return joined


def _rounded(value: Any) -> Any:
    """Round to what is stored; what is not finite becomes None, which JSON has."""
    if isinstance(value, np.ndarray):
        return [_rounded(float(item)) for item in value]
    return round(float(value), _DIGITS) if np.isfinite(value) else None
