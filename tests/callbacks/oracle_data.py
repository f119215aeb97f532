"""A held-out set with a known reward, and a policy beside a reference of other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from caldpo import training_run
from caldpo.callbacks.true_reward import OracleEvaluation
from caldpo.data.datamodule import HeldOutPrompt, PairDataModule
from caldpo.data.pair import TokenizedPair
from caldpo.data.raw_row import RawRow, RewardSource
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.lightning_module import PreferenceModule
from caldpo.lightning_trainer import TrainerSettings
from caldpo.loggers import MetricsFile
from caldpo.losses.dpo import DPO
from caldpo.optim import AdamW, Schedule
from caldpo.reference.frozen_model import FrozenReference
from tests.helpers.tiny import VOCABULARY, tiny_model, tiny_pairs, tiny_tokenizer
from tests.helpers.tiny_trainer import Pairs

BETA = 0.25
PROMPTS = 24


def reward(prompt: str, response: str) -> float:
    """How often w5 stands in the response, less a tenth of its words, plus a part that the prompt decides."""
    words = response.split()
    return words.count("w5") - 0.1 * len(words) + 0.01 * len(prompt.split())


def scored_pairs() -> list[TokenizedPair]:
    """Pairs with their true rewards: two of each prompt, so that every prompt has four responses."""
    tokenizer, pairs = tiny_tokenizer(), []
    for i, pair in enumerate(tiny_pairs(2 * PROMPTS, seed=3)):
        prompt = pairs[-1].prompt_ids if i % 2 else pair.prompt_ids
        true = [reward(tokenizer.decode(prompt), words(ids)) for ids in (pair.chosen_ids, pair.rejected_ids)]
        pairs.append(TokenizedPair(prompt, pair.chosen_ids, pair.rejected_ids, *true, i, pair.origin))
    return pairs


def words(ids: list[int]) -> str:
    """The text of tokens, by the numbering of the tiny vocabulary: 4 is w0."""
    return " ".join(f"w{i - 4}" for i in ids if i >= 4)


class KnownReward(RewardSource):
    """A source of no rows whose true reward is a function."""

    name = "known reward"

    def __init__(self, reward: Callable[[str, str], float]) -> None:
        self._reward = reward

    def rows(self, split: str) -> Iterator[RawRow]:
        return iter(())

    def reward(self, prompt: str, response: str) -> float:
        return self._reward(prompt, response)


class OracleData(Pairs):
    """A data module with held-out prompts, and a known reward where one is given."""

    eval_micro_batch_size = 5  # does not divide the number of pairs
    true_rewards = PairDataModule.true_rewards

    def __init__(self, oracle: Callable[[str, str], float] | None) -> None:
        pairs = scored_pairs()
        super().__init__(pairs[:8], pairs, 4)
        self.source = SimpleNamespace() if oracle is None else KnownReward(oracle)
        self.oracle, self.test_pairs = oracle, TokenizedPairs(pairs)

    def held_out_prompts(self, count: int) -> list[HeldOutPrompt]:
        """The first prompts, each once."""
        pairs = scored_pairs()[::2][:count]
        return [HeldOutPrompt(words(p.prompt_ids), p.prompt_ids, words(p.chosen_ids)) for p in pairs]


def make_module(seed: int = 1) -> PreferenceModule:
    """A policy whose log-ratios to the reference are not 0."""
    return PreferenceModule(
        tiny_model(seed=seed),
        FrozenReference(tiny_model(seed=0)),
        DPO(beta=0.5),
        AdamW(Schedule("constant", warmup_steps=0), lr=1e-2),
        tiny_tokenizer(),
        reward_beta=BETA,
        same_start=False,
    )


def fit(module: PreferenceModule, data: Any, folder: Path, *callbacks: pl.Callback, **settings: Any) -> None:
    """Train in a real Trainer."""
    made = TrainerSettings(progress_bar=False, **settings).build(folder, [MetricsFile(folder)], [*callbacks])
    training_run.fit(made, module, data)


@torch.no_grad()
def naive_logprob(model: Any, prompt: list[int], response: list[int]) -> float:
    """Log-probability of one response in nats, alone and without padding, in double precision."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    assert logits.shape[1] == VOCABULARY
    start = len(prompt) - 1
    return sum(torch.log_softmax(logits[start + i], dim=0)[token].item() for i, token in enumerate(response))


def models_sampled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List, as they are drawn, of which model the oracle's samples are: ``policy`` or ``reference``."""
    sampled: list[str] = []
    sample = OracleEvaluation.sample

    def count(self: OracleEvaluation, *args: Any, model_name: str = "policy", **settings: Any) -> list[list[int]]:
        sampled.append(model_name)
        return sample(self, *args, model_name=model_name, **settings)

    monkeypatch.setattr(OracleEvaluation, "sample", count)
    return sampled
