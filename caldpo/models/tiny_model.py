"""The embedded policy: a small Llama that is trained on the data's environment at first use, and cached."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from caldpo.config.bounds import NonNegativeInt, Positive, PositiveInt
from caldpo.config.signatures import validated
from caldpo.environments.sft_policy import SftRecipe, build_tokenizer, model_config, save_sft
from caldpo.environments.text_environments import TEXT_ENVIRONMENTS
from caldpo.errors import CaldpoError
from caldpo.models.model_source import ModelSource, prepare_for_training
from caldpo.utils.folder_cache import cached_folder


class TinyModel(ModelSource):
    """The SFT model of an environment of texts.

    Its weights are a function of these arguments alone, not of the training seed: the runs of a sweep over seeds start
    from the same policy and have the same reference.

    Args:
        hidden_size: width of the residual stream.
        intermediate_size: width inside the feed-forward block.
        initializer_range: standard deviation of the weights that fitting starts from.
        sft_steps, sft_batch_size: optimiser steps of the fit, and demonstrations a step.
        sft_lr: peak learning rate of the fit.
        sft_seed: of weights and demonstrations.
        cache: folder of the trained model, under a name with a digest of the arguments.
        environment: whose demonstrations it is fitted to, and whose words it knows.
    """

    @validated
    def __init__(
        self,
        hidden_size: PositiveInt,
        intermediate_size: PositiveInt,
        num_layers: PositiveInt,
        num_heads: PositiveInt,
        initializer_range: Positive,
        sft_steps: PositiveInt,
        sft_batch_size: PositiveInt,
        sft_lr: Positive,
        sft_seed: NonNegativeInt,
        cache: str,
        environment: Literal["reviews", "arithmetic"] = "reviews",
    ) -> None:
        # rotary positions turn the features of a head in pairs
        if hidden_size % (2 * num_heads):
            raise CaldpoError(
                f"model.hidden_size={hidden_size} must be a multiple of twice the heads",
                key="model.num_heads",
                value=num_heads,
            )
        self.cache = Path(cache)
        self.environment = TEXT_ENVIRONMENTS[environment]
        self.recipe = SftRecipe(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_layers=num_layers,
            num_heads=num_heads,
            initializer_range=initializer_range,
            steps=sft_steps,
            batch_size=sft_batch_size,
            lr=sft_lr,
            seed=sft_seed,
        )

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return build_tokenizer(self.environment)

    def load_policy(self) -> PreTrainedModel:
        folder = cached_folder(
            self.cache, self.name, lambda f: save_sft(self.environment, self.recipe, f), key="model.cache"
        )
        try:
            policy = LlamaForCausalLM.from_pretrained(folder, use_safetensors=True)
        except Exception as error:  # safetensors and json have errors of their own
            raise CaldpoError(
                f"the cached model in {folder} cannot be read: {str(error).splitlines()[0]}",
                remedy="delete the folder; the model is then fitted again",
            ) from error
        return prepare_for_training(policy, gradient_checkpointing=False, dropout=False)

    def skeleton(self) -> PreTrainedModel:
        policy = LlamaForCausalLM(model_config(self.environment, self.recipe, self.load_tokenizer()))
        return prepare_for_training(policy, gradient_checkpointing=False, dropout=False)

    def identity(self) -> str:
        r = self.recipe
        return f"{self.name} (Llama, hidden {r.hidden_size}, {r.num_layers} layers, fitted to {self.environment.name})"

    @property
    def name(self) -> str:
        """The folder of the weights in the cache, which identifies them."""
        return f"{self.environment.name}-sft-{self.recipe.digest(self.environment)}"
