"""A table of logits as a causal language model, trained by the same pipeline as any other.

A text is ``BOS prompt response EOS``, one token each. The next token depends on the current one alone: after
prompt i the logits of the responses are row i of the table, after anything else EOS is certain. So the
log-prob of a response is exactly that of its token; EOS adds exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutput

from caldpo.config.bounds import NonNegative, NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.environments.tabular_environment import Table, TabularEnvironment, prompt_text, response_text
from caldpo.environments.word_tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS, word_tokenizer
from caldpo.models.model_source import ModelSource

IMPOSSIBLE = -1e4
"""Logit whose probability is exactly 0 in every precision, but finite in float16: -inf times 0 is NaN."""

_FIRST = len(SPECIAL_TOKENS)
_EOS_ID = SPECIAL_TOKENS.index(EOS)


class TabularConfig(PretrainedConfig):
    """Sizes of the table."""

    model_type = "caldpo_tabular"
    num_hidden_layers = 0  # read when generation sets up a cache

    def __init__(self, prompts: int = 1, responses: int = 1, **kwargs: Any) -> None:
        self.prompts, self.responses = prompts, responses
        self.vocab_size = _FIRST + prompts + responses
        super().__init__(**kwargs)


class TabularLM(PreTrainedModel, GenerationMixin):
    """Logits of the next token, a function of the current one.

    ``lm_head.weight[next, current]`` holds the table and, around it, the logits that are certain or impossible.
    Those get a gradient of exactly 0, so that training moves only the table.
    """

    config_class = TabularConfig
    config: TabularConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: TabularConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.vocab_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def table(self) -> Table:
        """The logits, shape ``(prompts, responses)``: a view of the weights, through which they can be set."""
        prompts = _FIRST + self.config.prompts
        return self.lm_head.weight[prompts:, _FIRST:prompts].T

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Compute logits of shape ``(rows, positions, vocabulary)`` from tokens, ``(rows, length)``.

        Masks, positions and caches are accepted and ignored: nothing but the current token matters.
        ``logits_to_keep``: so many last positions (0: all), or the positions.
        """
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        current = F.one_hot(input_ids[:, positions], self.config.vocab_size)
        return CausalLMOutput(logits=self.lm_head(current.to(self.lm_head.weight.dtype)))

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a uniform table; everything else leads to EOS."""
        if isinstance(module, nn.Linear):
            prompts = slice(_FIRST, _FIRST + self.config.prompts)
            weight = torch.full_like(module.weight, IMPOSSIBLE)
            weight[_EOS_ID] = 0.0
            weight[_EOS_ID, prompts] = IMPOSSIBLE
            weight[prompts.stop :, prompts] = 0.0
            module.weight.copy_(weight)


# A policy folder written by a run is then loaded by AutoModelForCausalLM like any other.
AutoConfig.register(TabularConfig.model_type, TabularConfig)
AutoModelForCausalLM.register(TabularConfig, TabularLM)


@validated
@dataclass
class TabularModel(ModelSource):
    """The reference policy of a tabular environment, to start from; the arguments are the environment's."""

    prompts: PositiveInt
    responses: PositiveInt
    environment_seed: NonNegativeInt
    reference_spread: NonNegative

    def __post_init__(self) -> None:
        # rewards are no part of the policy
        self.environment = TabularEnvironment(
            self.prompts, self.responses, self.environment_seed, self.reference_spread, 0.0
        )

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Build a tokenizer of prompts ``x0, x1, ...`` and responses `` y0``, `` y1``, ..., a token each."""
        responses = (response_text(j).strip() for j in range(self.responses))
        return word_tokenizer(map(prompt_text, range(self.prompts)), responses, max_length=4)

    def load_policy(self) -> PreTrainedModel:
        policy = self.skeleton()
        with torch.no_grad():
            policy.table.copy_(self.environment.reference())
        return policy

    def skeleton(self) -> TabularLM:
        ids = {f"{n}_token_id": SPECIAL_TOKENS.index(t) for n, t in (("bos", BOS), ("eos", EOS), ("pad", PAD))}
        return TabularLM(TabularConfig(self.prompts, self.responses, **ids))

    def identity(self) -> str:
        settings = f"seed {self.environment_seed}, spread {self.reference_spread:g}"
        return f"table of {self.prompts} prompts x {self.responses} responses ({settings})"
