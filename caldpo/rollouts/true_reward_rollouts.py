"""Rollouts that are scored by the environment's true reward: the ceiling of what a reward model could give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from caldpo.config.signatures import validated
from caldpo.data.datamodule import PairDataModule
from caldpo.data.end_tokens import response_text
from caldpo.data.pair import TokenizedPair
from caldpo.data.raw_row import RewardSource
from caldpo.errors import CaldpoError
from caldpo.losses.base import PreferenceLoss
from caldpo.reference.reference_base import ReferenceSource
from caldpo.rollouts.rollout_base import RolloutContext
from caldpo.rollouts.sampled_pairs import SampledPairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from caldpo.lightning_module import PreferenceModule

_PROMPTS_CHECKED = 64


@validated
@dataclass
class TrueReward(SampledPairs):
    """``rollouts=true_reward``. The arguments are :class:`SampledPairs`'s."""

    def check(self, loss: PreferenceLoss, reference: ReferenceSource, data: PairDataModule, world_size: int) -> None:
        super().check(loss, reference, data, world_size)
        if not isinstance(data.source, RewardSource):
            raise CaldpoError(
                f"the true reward of {data.source.name} is not known",
                key="rollouts",
                value="true_reward",
                remedy="choose rollouts=reward_model, or an environment with a known reward such as data=reviews",
            )

    def describe(self) -> str:
        return "two samples of the policy per prompt, scored by the true reward"

    def prepare(self, context: RolloutContext) -> Mapping[str, Any]:
        _require_texts(context.data, context.tokenizer)
        return super().prepare(context)

    def rewards(
        self, pairs: Sequence[TokenizedPair], module: PreferenceModule, data: PairDataModule
    ) -> Sequence[tuple[float, float]]:
        prompts = [prompt_text(module.tokenizer, pair.prompt_ids) for pair in pairs]
        first, second = (
            data.true_rewards(prompts, [response_text(module.tokenizer, ids, self._ends) for ids in side])
            for side in ([p.chosen_ids for p in pairs], [p.rejected_ids for p in pairs])
        )
        return list(zip(first.tolist(), second.tolist(), strict=True))


def prompt_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Decode a prompt to the text it stands for."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _require_texts(data: PairDataModule, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse prompts that their tokens do not give back, white space aside: the reward reads the text.

    Held-out prompts stand for those of training, whose texts are not kept.
    """
    for held_out in data.held_out_prompts(_PROMPTS_CHECKED):
        text = prompt_text(tokenizer, held_out.prompt_ids)
        if not isinstance(held_out.prompt, str) or text.split() != held_out.prompt.split():
            raise CaldpoError(
                f"the tokens of the prompt {held_out.origin} give {text[:80]!r}, not its text, which the reward reads",
                key="rollouts",
                value="true_reward",
                remedy="raise data.max_length and data.max_prompt_length where prompts are cut, and use plain prompts",
            )
