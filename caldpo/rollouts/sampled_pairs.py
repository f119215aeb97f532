"""Pairs of two fresh samples of the policy, in place of the data's responses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from caldpo.config.bounds import NonNegativeInt, PositiveInt
from caldpo.data.collate import collate
from caldpo.data.datamodule import PairDataModule
from caldpo.data.end_tokens import end_tokens
from caldpo.data.pair import TokenizedPair
from caldpo.errors import CaldpoError
from caldpo.losses.base import PreferenceLoss
from caldpo.metric_definitions import ROLLOUT_EQUAL, ROLLOUT_REWARD, ROLLOUT_UNFINISHED
from caldpo.models.dropout import dropout_rates
from caldpo.models.sampling import sample_responses
from caldpo.reference.auto_reference import Auto
from caldpo.reference.precomputed import Precomputed
from caldpo.reference.reference_base import ReferenceSource
from caldpo.rollouts.rollout_base import NoRollouts, RolloutContext
from caldpo.types import PairBatch

if TYPE_CHECKING:
    from caldpo.lightning_module import PreferenceModule

SAMPLES_AT_ONCE = 512  # responses that are sampled together


@dataclass
class SampledPairs(NoRollouts):
    """Samples two responses per prompt, at temperature 1 and from the full distribution, and scores them.

    The better one is the chosen. Two equal samples are a pair without signal: it stays in the mean over the step's
    pairs, and its gradient is 0. Samples depend on the seed, the optimiser step and the micro-batch alone, so that a
    resumed run draws the same.

    Args:
        max_new_tokens: of a sample; a longer one is cut, and trained on without its end.
        seed: of the sampling.
    """

    on = True

    max_new_tokens: PositiveInt
    seed: NonNegativeInt

    def check(self, loss: PreferenceLoss, reference: ReferenceSource, data: PairDataModule, world_size: int) -> None:
        if not loss.needs_rejected:
            raise CaldpoError(
                "samples two responses to compare, and this loss reads one",
                key="rollouts",
                remedy="choose loss=rebel, which is RLOO here, or another loss of pairs",
            )
        if loss.depends_on_batch:
            raise CaldpoError(
                "samples the pairs of a micro-batch as it comes, and this loss reads whole optimiser steps ahead",
                key="rollouts",
                remedy="choose loss=rebel, which is RLOO here, or another loss of single pairs",
            )
        if world_size > 1:
            raise CaldpoError(
                "samples on one device",
                key="rollouts",
                value=f"with {world_size} devices",
                remedy="set trainer.devices=1 trainer.num_nodes=1",
            )
        if data.streaming:
            raise CaldpoError(
                "takes its prompts from the training split, which is not known with data.streaming=true",
                key="rollouts",
                remedy="leave data.streaming out",
            )
        if isinstance(reference, Precomputed) and not isinstance(reference, Auto):
            raise CaldpoError(
                "computes log-probs of the training pairs first, and rollouts train on samples that do not exist yet",
                key="reference",
                value="precomputed",
                remedy="choose reference=auto, reference=frozen, or reference=adapter with an adapter",
            )

    def prepare(self, context: RolloutContext) -> Mapping[str, Any]:
        if dropout_rates(context.policy):
            raise CaldpoError(
                "samples are drawn without dropout, and would be trained on by another policy, with it",
                key="model.dropout",
                value="true",
                remedy="set model.dropout=false, or rollouts=none",
            )
        self._ends = end_tokens(context.tokenizer, context.policy)
        return {}

    def draw(self, batch: PairBatch, batch_idx: int, module: PreferenceModule) -> tuple[PairBatch, dict[str, Tensor]]:
        """Sample, score and order the responses of a micro-batch's prompts."""
        data: PairDataModule = module.trainer.datamodule  # type: ignore[attr-defined]
        place = (self.seed, module.global_step, batch_idx)
        pairs = self._sampled([data.train_pairs[row] for row in batch.index.tolist()], place, module)
        with torch.no_grad():
            rewards = self.rewards(pairs, module, data)
        ordered = [ordered_pair(pair, *both) for pair, both in zip(pairs, rewards, strict=True)]
        pad = module.tokenizer.pad_token_id
        drawn = collate(
            ordered,
            module.tokenizer.eos_token_id if pad is None else pad,
            layout=data.layout,
            split=batch.split,
            weight=batch.weight.tolist(),
            step_pairs=batch.step_pairs,
            with_scores=True,
        ).to(module.device)
        sides = [(p.chosen_ids, p.rejected_ids) for p in ordered]
        unfinished = [sum(ids[-1] not in self._ends for ids in both) / 2 for both in sides]
        assert drawn.score_chosen is not None
        assert drawn.score_rejected is not None
        return drawn, {
            ROLLOUT_REWARD.name: (drawn.score_chosen + drawn.score_rejected) / 2,
            ROLLOUT_EQUAL.name: torch.tensor([float(one == other) for one, other in sides], device=module.device),
            ROLLOUT_UNFINISHED.name: torch.tensor(unfinished, device=module.device),
        }

    @abstractmethod
    def rewards(
        self, pairs: Sequence[TokenizedPair], module: PreferenceModule, data: PairDataModule
    ) -> Sequence[tuple[float, float]]:
        """Compute the rewards of both responses of each pair."""

    def _sampled(
        self, pairs: Sequence[TokenizedPair], place: tuple[int, int, int], module: PreferenceModule
    ) -> list[TokenizedPair]:
        """Replace the responses of pairs by two samples each, in the order they were drawn."""
        prompts = [pair.prompt_ids for pair in pairs for _ in range(2)]
        responses = sample_responses(
            module.policy,
            module.tokenizer,
            prompts,
            ends=self._ends,
            max_new_tokens=self.max_new_tokens,
            temperature=1.0,  # RLOO's gradient is that of the policy's own distribution
            seed=int(np.random.SeedSequence(place).generate_state(1)[0]),
            batch_size=SAMPLES_AT_ONCE,
            device=module.device,
            whose=f"after {module.global_step} optimiser steps the policy's",
            names=[pair.origin for pair in pairs for _ in range(2)],
        )
        both = zip(pairs, responses[::2], responses[1::2], strict=True)
        return [replace(pair, chosen_ids=one, rejected_ids=other) for pair, one, other in both]


def ordered_pair(pair: TokenizedPair, first: float, second: float) -> TokenizedPair:
    """Put the response of higher reward first; ``first`` and ``second`` are the rewards in the pair's order."""
    chosen, rejected = pair.chosen_ids, pair.rejected_ids
    if second > first:
        chosen, rejected, first, second = rejected, chosen, second, first
    return replace(pair, chosen_ids=chosen, rejected_ids=rejected, score_chosen=first, score_rejected=second)
