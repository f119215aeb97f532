"""Generate the controlled sentiment task: pairs of movie-review continuations with a known reward.

As in Rafailov et al. 2023 (section 6 and appendix C.1), the prompt is the first few tokens of a review, an SFT policy
continues it several times, a sentiment classifier's log-odds are the true reward, and every two continuations of a
prompt make a pair. The rewards stay with the pairs as scores.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.config.bounds import NonNegativeInt, Positive, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.end_tokens import end_tokens
from caldpo.data.raw_row import RawRow, RewardSource
from caldpo.data.sources.hub_dataset import HubDataset
from caldpo.data.sources.json_rows import read_jsonl
from caldpo.data.sources.review_texts import decode_exactly, first_tokens, prompt_lengths
from caldpo.data.sources.sentiment_reward import SentimentReward
from caldpo.environments.bradley_terry import labelled_row
from caldpo.errors import CaldpoError
from caldpo.models.hub_model import load_causal_lm, load_tokenizer
from caldpo.models.sampling import sample_responses
from caldpo.utils.delayed_progress import tracked
from caldpo.utils.digests import full_folder_digest, json_digest
from caldpo.utils.folder_cache import cached_folder

_PAIRS = "pairs.jsonl"  # in the cache's folder
_RECIPE = 1  # raised when the same settings would give other pairs


@validated
@dataclass(eq=False)
class ImdbSentiment(RewardSource):
    """Generates the pairs of a split once and reads them from ``cache_dir`` from then on.

    The cached folder is named by a digest of everything that determines the pairs, the contents of local models
    included, but not the device.

    Args:
        path: hub id or folder of the reviews, with a column ``text``.
        policy: hub id or folder of the SFT model that continues them.
        classifier: hub id or folder of the sentiment classifier.
        positive_label: the classifier's name for the positive class.
        revision: of the reviews: branch, tag or commit.
        min_prompt_tokens, max_prompt_tokens: of a prompt's length, drawn uniformly, in tokens of the policy.
        completions: continuations sampled per prompt; n of them make n (n - 1) / 2 pairs.
        max_new_tokens: longest continuation, tokens.
        temperature: of the sampling.
        label_sharpness: None: the higher reward is chosen; a number: drawn by Bradley-Terry from the reward
            difference in nats times this.
        batch_size: sequences sampled or scored at a time; another one draws other samples.
        seed: of prompt lengths, sampling and drawn labels.
        device: ``auto`` is the GPU where there is one.
        cache_dir: folder of the finished pairs.
    """

    name = "imdb"

    path: str
    policy: str
    classifier: str
    positive_label: str = "POSITIVE"
    revision: str | None = None
    min_prompt_tokens: PositiveInt = 2
    max_prompt_tokens: PositiveInt = 8
    completions: Annotated[int, Field(ge=2)] = 4
    max_new_tokens: PositiveInt = 64
    temperature: Positive = 1.0
    label_sharpness: Positive | None = None
    batch_size: PositiveInt = 64
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cache_dir: str = "outputs/cache"

    def __post_init__(self) -> None:
        self._prompt_tokens = prompt_lengths(self.min_prompt_tokens, self.max_prompt_tokens)
        self._reviews = HubDataset(self.path, revision=self.revision)
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yield the pairs of a split of the reviews, generating them if they are not in the cache.

        Raises:
            CaldpoError: reviews, policy or classifier cannot be loaded, or give no pair.
        """

        def make(folder: Path) -> None:
            lines = [json.dumps(pair) + "\n" for pair in self._pairs(split)]
            (folder / _PAIRS).write_text("".join(lines), encoding="utf-8")

        file = self.cache_file(split)
        cached_folder(file.parents[1], file.parent.name, make, key="data.source.cache_dir")
        return read_jsonl(file)

    def reward(self, prompt: str, response: str) -> float:
        """Return the true reward: log-odds, in nats, that prompt and response together are positive."""
        return self.rewards([prompt], [response])[0]

    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Return the true rewards of many responses, a batch at a time."""
        return self._scorer([prompt + response for prompt, response in zip(prompts, responses, strict=True)])

    def is_generated(self, split: str) -> bool:
        """Whether the pairs of ``split`` are in the cache."""
        return self.cache_file(split).is_file()

    def cache_file(self, split: str) -> Path:
        """Return the cache file of ``split`` under the present settings."""
        settings = {
            "recipe": _RECIPE,
            "split": split,
            "reviews": [_identity(self.path), self.revision],
            "models": [_identity(self.policy), _identity(self.classifier), self.positive_label],
            "prompt_tokens": self._prompt_tokens,
            "sampling": [self.completions, self.max_new_tokens, self.temperature, self.batch_size, self.seed],
            "label_sharpness": self.label_sharpness,
        }
        return Path(self.cache_dir).expanduser() / f"imdb-{json_digest(settings)[:16]}" / _PAIRS

    def _pairs(self, split: str) -> list[dict[str, Any]]:
        score = self._scorer  # before the sampling, which takes long: the classifier may not be there
        tokenizer = load_tokenizer(self.policy, key="data.source.policy")
        prompts = first_tokens(self._reviews.column(split, "text"), tokenizer, *self._prompt_tokens, self.seed)
        repeated = [prompt for prompt in prompts for _ in range(self.completions)]
        model = load_causal_lm(self.policy, key="data.source.policy")
        model.to(self.device)  # type: ignore[arg-type]
        continuations = sample_continuations(
            model,
            tokenizer,
            repeated,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            batch_size=self.batch_size,
        )
        rewards = score([p + c for p, c in zip(repeated, continuations, strict=True)])
        scored = zip(continuations, rewards, strict=True)
        rng = random.Random(f"labels {self.seed}")
        pairs: list[dict[str, Any]] = []
        for prompt in prompts:
            pairs += label_pairs(prompt, list(itertools.islice(scored, self.completions)), self.label_sharpness, rng)
        if not pairs:
            raise CaldpoError(
                "no two continuations of a prompt have any text", key="data.source.policy", value=self.policy
            )
        return pairs

    @functools.cached_property
    def _scorer(self) -> SentimentReward:
        names = self.classifier, self.positive_label
        return SentimentReward(*names, self.device, self.batch_size, key="data.source.classifier")


def sample_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
) -> list[str]:
    """Sample one continuation per prompt; ``prompt + continuation`` is the whole text, spaces between them included."""
    continuations: list[str] = []
    for start in tracked(range(0, len(prompts), batch_size), "Sampling continuations"):
        texts = prompts[start : start + batch_size]
        ids = [_as_prompt(tokenizer(text)["input_ids"], tokenizer.eos_token_id) for text in texts]
        responses = sample_responses(
            model,
            tokenizer,
            ids,
            ends=end_tokens(tokenizer, model),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=random.Random(f"sample {seed} {start}").getrandbits(31),
            batch_size=batch_size,
        )
        continuations += [_continuation(tokenizer, *parts) for parts in zip(texts, ids, responses, strict=True)]
    return continuations


def _as_prompt(ids: list[int], eos: int) -> list[int]:
    """Remove the EOS that some tokenizers append, after which a model would generate nothing."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: str, ids: list[int], response: list[int]) -> str:
    # Decoded with the prompt, because many tokenizers drop a space at the beginning of a text.
    whole = decode_exactly(tokenizer, ids + response)
    return whole[len(prompt) :] if whole.startswith(prompt) else decode_exactly(tokenizer, response)


def label_pairs(
    prompt: str, scored: Sequence[tuple[str, float]], sharpness: float | None, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Yield every two of a prompt's continuations as a labelled row; one without text is in no pair.

    Args:
        scored: continuations and their true rewards, nats.
        sharpness: of the Bradley-Terry label per nat; None lets the higher reward win.
    """
    usable = [(text, reward) for text, reward in scored if text.strip()]
    for first, second in itertools.combinations(usable, 2):
        yield labelled_row(prompt, first, second, sharpness, rng)


def _identity(path: str) -> list[str]:
    """Identify a hub id by itself, a folder by a digest of its files, since it may be trained again."""
    folder = Path(path).expanduser()
    return [full_folder_digest(folder) if folder.is_dir() else path]
