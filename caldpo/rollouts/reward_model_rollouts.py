"""Rollouts that are scored by a reward model, fitted on the run's own training pairs before the policy is trained."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from caldpo.config.bounds import Positive, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.collate import collate
from caldpo.data.datamodule import PairDataModule
from caldpo.data.pair import TokenizedPair
from caldpo.errors import CaldpoError, one_line
from caldpo.logprobs import LogprobEngine
from caldpo.models.adapted_policy import is_adapted
from caldpo.models.model_forward import evaluating
from caldpo.rollouts.reward_model import LogRatioReward, ScalarHeadReward
from caldpo.rollouts.reward_model_fit import accuracy, fit_reward_model, require_rewards, rewards_of
from caldpo.rollouts.rollout_base import RolloutContext
from caldpo.rollouts.sampled_pairs import SampledPairs
from caldpo.utils.atomic_io import atomic_folder
from caldpo.utils.digests import full_folder_digest
from caldpo.utils.notes import print_notes

if TYPE_CHECKING:
    from caldpo.lightning_module import PreferenceModule

DPO_BETA = 0.1  # as loss=dpo and loss=rebel have it by default
FOLDER, WEIGHTS, FACTS = "reward_model", "model.safetensors", "facts.json"


@validated
@dataclass
class FittedReward(SampledPairs):
    """``rollouts=reward_model``: RLHF.

    The model is kept in ``reward_model/`` of the run's folder, from which a resumed run takes it. Without
    ``standardize`` rewards are as Bradley-Terry has them, so that ``loss=rebel`` and ``loss=dpo`` with the same beta
    optimise the same objective: DPO's is derived from it (Rafailov et al. 2023, arXiv 2305.18290, Eq. 3).

    Args:
        max_new_tokens, seed: as of :class:`SampledPairs`.
        kind: ``scalar_head``: the policy's body with a scalar head at the end of the response; ``log_ratio``: a copy of
            the policy trained by DPO, whose ``beta`` log-ratio is the reward. The optimum under a loss's own ``beta'``
            is then ``pi_ref (pi_dpo / pi_ref)^(beta / beta')``: DPO's policy where the two are equal, and far beyond
            it where ``beta'`` is much smaller.
        beta: reward per nat of log-ratio, of ``log_ratio`` alone; None: 0.1.
        steps: optimiser steps of its training.
        lr: learning rate; None takes the run's.
        standardize: divide by the standard deviation of the rewards of the training responses, and subtract their mean.
    """

    kind: Literal["scalar_head", "log_ratio"]
    beta: Positive | None
    steps: PositiveInt
    lr: Positive | None
    standardize: bool

    def __post_init__(self) -> None:
        if self.beta is not None and self.kind != "log_ratio":
            raise CaldpoError(
                "is read only with rollouts.kind=log_ratio",
                key="rollouts.beta",
                value=self.beta,
                remedy="leave it out: a scalar head has the scale of Bradley-Terry by itself",
            )

    def describe(self) -> str:
        return f"two samples of the policy per prompt, scored by a reward model ({self.kind}) of the training pairs"

    def prepare(self, context: RolloutContext) -> Mapping[str, Any]:
        """Fit the model, or take it from the folder of a resumed run."""
        super().prepare(context)
        self._model = self._untrained(context)
        self._folder = context.run_dir / FOLDER
        if context.resumed and self._folder.is_dir():
            self._facts = _load(self._model, self._folder)
        else:
            self._facts = self._fit(context)
            with atomic_folder(self._folder) as draft:
                _save(self._model, self._facts, draft)
        self._model.requires_grad_(False).eval()
        print_notes(["reward model: {kind}, {steps} steps, held-out accuracy {accuracy:.3f}".format(**self._facts)])
        return {"reward_model": self._facts}

    def inputs(self) -> dict[str, str]:
        return {"the reward model": full_folder_digest(self._folder)}

    def rewards(
        self, pairs: Sequence[TokenizedPair], module: PreferenceModule, data: PairDataModule
    ) -> Sequence[tuple[float, float]]:
        pad = module.tokenizer.pad_token_id
        pad = module.tokenizer.eos_token_id if pad is None else pad
        batch = collate(pairs, pad, layout=data.layout).to(module.device)
        with evaluating(self._model.to(module.device)):
            first, second = self._model(batch)
        mean, scale = self._facts["mean"], self._facts["scale"]
        both = ((torch.stack([first, second], dim=1).double() - mean) / scale).tolist()
        return [(one, other) for one, other in both]

    def _untrained(self, context: RolloutContext) -> nn.Module:
        policy = copy.deepcopy(context.policy)
        if self.kind == "log_ratio":
            return LogRatioReward(policy, context.reference, self.beta or DPO_BETA)
        name = type(policy).__name__
        if is_adapted(policy) or policy.base_model is policy or LogprobEngine(policy).head is None:
            raise CaldpoError(
                f"{name} has an adapter, or no body that a scalar head could be put on",
                key="rollouts.kind",
                value=self.kind,
                remedy="set rollouts.kind=log_ratio",
            )
        return ScalarHeadReward(policy)

    def _fit(self, context: RolloutContext) -> dict[str, Any]:
        """Train, and measure on held-out pairs; returns what is known of the model."""
        optim = copy.copy(context.optim)
        optim.lr = self.lr or optim.lr
        trainer, device = context.trainer(self.steps), context.device
        self._model.to(device)
        fit_reward_model(self._model, optim, trainer, context.data)
        self._model.to(device)
        held_out = rewards_of(self._model, context.data, "test", trainer, device)
        require_rewards(torch.cat(held_out))
        facts = {"kind": self.kind, "steps": self.steps, "accuracy": accuracy(*held_out), "mean": 0.0, "scale": 1.0}
        if self.standardize:
            rewards = torch.cat(rewards_of(self._model, context.data, "train", trainer, device))
            require_rewards(rewards, spread=True)
            facts |= {"mean": rewards.mean().item(), "scale": rewards.std().item()}
        return facts


def _load(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Load the weights into the model, and return what is known of it."""
    try:
        load_model(model, folder / WEIGHTS)
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CaldpoError(
            f"{folder} holds no reward model of this run: {one_line(error)}",
            key="resume",
            remedy="restore the folder, or start a new run",
        ) from error
    return facts


def _save(model: nn.Module, facts: Mapping[str, Any], folder: Path) -> None:
    save_model(model, str(folder / WEIGHTS))
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
