"""Base classes of the project's callbacks; ``conf/callbacks/default.yaml`` explains their keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from transformers import PreTrainedModel

from caldpo.config.bounds import NonNegative, NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.datamodule import HeldOutPrompt
from caldpo.data.end_tokens import end_tokens, response_text
from caldpo.distributed.fsdp import is_sharded
from caldpo.lightning_module import PreferenceModule
from caldpo.models.sampling import sample_responses


class RunCallback(pl.Callback):
    """A callback with what a run asks of it besides Lightning's hooks."""

    alarms: list[dict[str, Any]]  # for summary.json: each with its name `alarm`, the optimiser `step` and a `text`

    def __init__(self) -> None:
        self.alarms = []

    def on_trained(self, trainer: pl.Trainer, module: PreferenceModule) -> None:
        """Called on all ranks once, after the last evaluation of the held-out pairs."""


class PromptSampling(RunCallback):
    """Samples responses to the first held-out prompts; without prompts it is off."""

    @validated
    def __init__(
        self,
        prompts: NonNegativeInt,
        max_new_tokens: PositiveInt = 64,
        temperature: NonNegative = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.prompts, self.max_new_tokens, self.temperature, self.seed = prompts, max_new_tokens, temperature, seed

    def takes_part(self, trainer: pl.Trainer, module: PreferenceModule) -> bool:
        """Whether this rank samples: the first, and all others that hold shards of the weights."""
        return bool(self.prompts) and (trainer.is_global_zero or is_sharded(module.policy))

    def sample(
        self,
        model: PreTrainedModel,
        module: PreferenceModule,
        held_out: Sequence[HeldOutPrompt],
        *,
        seed: int,
        model_name: str = "policy",
    ) -> list[list[int]]:
        """Sample one response to each prompt by policy or reference, token ids up to and including the policy's end.

        Raises:
            CaldpoError: logits are not finite.
        """
        return sample_responses(
            model,
            module.tokenizer,
            [prompt.prompt_ids for prompt in held_out],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=seed,
            device=module.device,
            ends=end_tokens(module.tokenizer, module.policy),
            whose=f"after {module.global_step} optimiser steps the {model_name}'s",
            names=[prompt.origin or f"prompt {i}" for i, prompt in enumerate(held_out, 1)],
        )


def response_texts(module: PreferenceModule, responses: Sequence[list[int]]) -> list[str]:
    """Decode responses, without the tokens that end them."""
    ends = end_tokens(module.tokenizer, module.policy)
    return [response_text(module.tokenizer, ids, ends) for ids in responses]
