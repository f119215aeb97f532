"""The controlled sentiment task: pairs of movie-review continuations with a known reward.

IMDb itself has reviews and labels, no pairs. As in Rafailov et al. 2023 (section 6 and appendix C.1), the
prompt is the first few tokens of a review, an SFT policy continues it several times, a sentiment classifier's
log-odds are the true reward, and every two continuations of a prompt make a pair. The rewards stay with the
pairs as scores.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from caldpo.config.bounds import NonNegativeInt, Positive, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.raw_row import RawRow
from caldpo.data.sources._continuations import first_tokens, prompt_lengths, sample_continuations
from caldpo.data.sources._file_names import folder_digest
from caldpo.data.sources._json_rows import read_jsonl
from caldpo.data.sources._sentiment_reward import SentimentReward
from caldpo.data.sources.hub_dataset import HubDataset
from caldpo.environments.bradley_terry import prefers_first
from caldpo.environments.folder_cache import cached_folder
from caldpo.errors import CaldpoError
from caldpo.models.hub_model import load_causal_lm, load_tokenizer

_PAIRS = "pairs.jsonl"  # in the cache's folder
_RECIPE = 1  # raised when the same settings would give other pairs


class ImdbSentiment:
    """Makes the pairs of a split once and reads them from ``cache_dir`` from then on.

    The cached folder is named after everything that decides about the pairs; where a model is a local folder,
    after the size and time of its files. The device is left out: pairs made on one serve on another.

    Args:
        path: hub id or folder of the reviews, with a column ``text``.
        policy: hub id or folder of the SFT model that continues them.
        classifier: hub id or folder of the sentiment classifier.
        positive_label: the classifier's name for the positive class.
        revision: of the reviews: branch, tag or commit.
        min_prompt_tokens, max_prompt_tokens: a prompt's length is drawn evenly between them, in tokens
            of the policy.
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

    @validated
    def __init__(
        self,
        path: str,
        policy: str,
        classifier: str,
        positive_label: str = "POSITIVE",
        revision: str | None = None,
        min_prompt_tokens: PositiveInt = 2,
        max_prompt_tokens: PositiveInt = 8,
        completions: PositiveInt = 4,
        max_new_tokens: PositiveInt = 64,
        temperature: Positive = 1.0,
        label_sharpness: Positive | None = None,
        batch_size: PositiveInt = 64,
        seed: NonNegativeInt = 0,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        cache_dir: str = "outputs/cache",
    ) -> None:
        if completions < 2:
            raise CaldpoError("a pair needs two", key="data.source.completions", value=completions)
        self.reviews = HubDataset(path, revision=revision)
        self.policy, self.classifier, self.positive_label = policy, classifier, positive_label
        self.prompt_tokens = prompt_lengths(min_prompt_tokens, max_prompt_tokens)
        self.completions, self.max_new_tokens = completions, max_new_tokens
        self.temperature, self.label_sharpness = temperature, label_sharpness
        self.batch_size, self.seed, self.cache_dir = batch_size, seed, cache_dir
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yields the pairs made from a split of the reviews, making them if they are not in the cache.

        Args:
            split: of the reviews (``train``, ``train[:1000]``).

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
        """The true reward: log-odds, in nats, that prompt and response together are positive."""
        return self._scorer([prompt + response])[0]

    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The true rewards of many, a batch at a time."""
        return self._scorer([prompt + response for prompt, response in zip(prompts, responses, strict=True)])

    def cache_file(self, split: str) -> Path:
        """Where the pairs of ``split`` are kept under the present settings."""
        settings = {
            "recipe": _RECIPE,
            "split": split,
            "reviews": [_identity(self.reviews.path), self.reviews.revision],
            "models": [_identity(self.policy), _identity(self.classifier), self.positive_label],
            "prompt_tokens": self.prompt_tokens,
            "sampling": [self.completions, self.max_new_tokens, self.temperature, self.batch_size, self.seed],
            "label_sharpness": self.label_sharpness,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        return Path(self.cache_dir).expanduser() / f"imdb-{digest}" / _PAIRS

    def _pairs(self, split: str) -> list[dict[str, Any]]:
        score = self._scorer  # before the sampling, which takes long: the classifier may not be there
        tokenizer = load_tokenizer(self.policy, key="data.source.policy")
        prompts = first_tokens(self._reviews(split), tokenizer, *self.prompt_tokens, self.seed)
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
        n = self.completions
        groups = (
            (prompt, list(zip(continuations[i * n : i * n + n], rewards[i * n : i * n + n], strict=True)))
            for i, prompt in enumerate(prompts)
        )
        rng = random.Random(f"labels {self.seed}")
        pairs = [pair for group in groups for pair in label_pairs(*group, self.label_sharpness, rng)]
        if not pairs:
            raise CaldpoError(
                "no two continuations of a prompt have any text", key="data.source.policy", value=self.policy
            )
        return pairs

    def _reviews(self, split: str) -> Iterator[str]:
        data = self.reviews.load(split)
        if "text" not in data.column_names:
            raise CaldpoError(
                f"the reviews have no column `text` (but {', '.join(data.column_names)})",
                key="data.source.path",
                value=self.reviews.path,
            )
        return iter(data["text"])

    @functools.cached_property
    def _scorer(self) -> SentimentReward:
        return SentimentReward(
            self.classifier,
            self.positive_label,
            self.device,
            self.batch_size,
            key="data.source.classifier",
        )


def label_pairs(
    prompt: str, scored: Sequence[tuple[str, float]], sharpness: float | None, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Every two of a prompt's continuations as a labelled row; one without text is in no pair.

    Args:
        scored: continuations and their true rewards, nats.
        sharpness: of the Bradley-Terry label per nat; None lets the higher reward win.
    """
    usable = [(text, reward) for text, reward in scored if text.strip()]
    for first, second in itertools.combinations(usable, 2):
        in_order = prefers_first(first[1], second[1], sharpness, rng)
        (chosen, score_chosen), (rejected, score_rejected) = (first, second) if in_order else (second, first)
        yield {
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "score_chosen": score_chosen,
            "score_rejected": score_rejected,
        }


def _identity(path: str) -> list[Any]:
    """A hub id as it is; a folder with a digest of its files, since it may be trained again."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return [path]
    return [folder_digest(folder)]
