"""Generate preference pairs of an embedded environment of texts, under the conditions that a study varies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from caldpo.config.bounds import NonNegativeInt, Positive, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.raw_row import RawRow, RewardSource
from caldpo.data.sources.policy_samples import policy_samples
from caldpo.environments.pair_sampling import BLOCK, PairRecipe, Row, sample_pairs
from caldpo.environments.text_environment import SPLITS, Split
from caldpo.environments.text_environments import TEXT_ENVIRONMENTS
from caldpo.errors import CaldpoError
from caldpo.models.model_source import ModelSource
from caldpo.models.tiny_model import TinyModel

_MOST_DRAWS = 16  # of two responses with different rewards to a prompt; then the prompt is left out


@validated
@dataclass(eq=False)
class EnvironmentPairs(RewardSource):
    """Pairs of texts, labelled from a known true reward; see ``caldpo.environments``.

    Conditions change what is trained on; the test split stays the same, except that ``on_policy`` and ``scores`` hold
    for all splits.

    Args:
        environment: grammar and true reward.
        train_pairs, validation_pairs, test_pairs: pairs of the splits ``train``, ``validation`` (to tune on) and
            ``test``, each with its own prompt. No prompt is in two splits, whatever the seeds. Fewer pairs are the
            first of more.
        label_sharpness: P(chosen is better) = sigmoid(sharpness x reward gap); None always prefers the better.
        seed: of prompts, responses and labels.
        label_noise: share of labels flipped on top, in training and validation; the pairs flipped at a share are
            flipped at every larger one.
        prompts: ``shifted`` draws training prompts from another distribution than the held-out ones.
        on_policy: responses are samples of the SFT policy (``model=tiny``) instead of the environment's pool.
        scores: ``rewards`` gives true rewards as scores; ``quantiles`` the share of the SFT policy's samples for the
            same prompt whose reward is not higher (Matrenok et al. 2025, arXiv 2507.08068).
        quantile_samples: samples per prompt for that.
        cache_dir: folder of the samples.
    """

    environment: Literal["reviews", "arithmetic"]
    train_pairs: PositiveInt
    test_pairs: PositiveInt
    label_sharpness: Positive | None
    seed: NonNegativeInt
    validation_pairs: PositiveInt = 256
    label_noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    prompts: Literal["standard", "shifted"] = "standard"
    on_policy: bool = False
    scores: Literal["rewards", "quantiles"] = "rewards"
    quantile_samples: PositiveInt = 20
    cache_dir: str = "outputs/cache"

    def __post_init__(self) -> None:
        self.name = self.environment
        self._texts = TEXT_ENVIRONMENTS[self.environment]
        self._model: ModelSource | None = None
        shifted = self.prompts == "shifted"
        self._recipe = PairRecipe(self.environment, self.seed, self.label_sharpness, self.label_noise, shifted)

    def attach_model(self, model: ModelSource) -> None:
        self._model = model

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yield the pairs of ``train``, ``validation`` or ``test``, text with the scores of both responses.

        Raises:
            CaldpoError: no such split; not so many prompts; samples are needed of a model that is not the
                environment's own.
        """
        if split not in SPLITS:
            raise CaldpoError(f"no such split: the {self.name} data has {', '.join(SPLITS)}", key=split)
        known = cast(Split, split)
        count = {"train": self.train_pairs, "validation": self.validation_pairs, "test": self.test_pairs}[known]
        pairs = self._with_quantiles(known, count) if self.scores == "quantiles" else self._pairs(known, count)
        return (RawRow(f"{split}[{i}]", row) for i, row in enumerate(pairs))

    def reward(self, prompt: str, response: str) -> float:
        """Return the true reward of any response, in standard deviations of the (off-policy) data's responses."""
        return self._texts.reward(prompt, response)

    def is_generated(self, split: str) -> bool:
        """Whether no samples of a policy are needed."""
        return not self.on_policy and self.scores == "rewards"

    def _pairs(self, split: Split, count: int) -> Iterator[Row]:
        return sample_pairs(self._recipe, split, count, self._sampled_pairs if self.on_policy else None)

    def _sampled_pairs(self, prompts: Sequence[str]) -> list[tuple[str, str] | None]:
        """Sample two responses to each prompt, given that both have text and their rewards differ."""
        found: dict[int, tuple[str, str]] = {}
        for draw in range(_MOST_DRAWS):
            left = [i for i in range(len(prompts)) if i not in found]
            for i, (first, second) in zip(left, self._samples([prompts[i] for i in left], 2, draw), strict=True):
                rewards = {self.reward(prompts[i], text) for text in (first, second)}
                if len(rewards) == 2 and first.strip() and second.strip():
                    found[i] = (first, second)
        return [found.get(i) for i in range(len(prompts))]

    def _with_quantiles(self, split: Split, count: int) -> Iterator[Row]:
        size, shifted = BLOCK[split], self.prompts == "shifted" and split == "train"
        # whole blocks, so that a prompt's samples do not depend on the number of pairs
        drawn = min(-(-count // size) * size, max(count, self._texts.prompt_count(split, shifted=shifted)))
        rows = list(self._pairs(split, drawn))
        for start in range(0, count, size):
            block = rows[start : start + size]
            samples = self._samples([row["prompt"] for row in block], self.quantile_samples, "quantiles")
            for row, texts in zip(block[: count - start], samples, strict=False):
                rewards = [self.reward(row["prompt"], text) for text in texts]
                for side in ("score_chosen", "score_rejected"):
                    row[side] = sum(r <= row[side] for r in rewards) / len(rewards)
                yield row

    def _samples(self, prompts: Sequence[str], per_prompt: int, draw: Any) -> list[list[str]]:
        if not prompts:
            return []
        model, key = self._model, "on_policy" if self.on_policy else "scores"
        if not isinstance(model, TinyModel) or model.environment is not self._texts:
            raise CaldpoError(
                f"needs samples of the SFT policy of the {self.name} environment, and the model is another",
                key=f"data.source.{key}",
                value=getattr(self, key),
                remedy="choose model=tiny",
            )
        cache = Path(self.cache_dir).expanduser()
        return policy_samples(
            model, prompts, per_prompt, seed=f"{self.seed}/{draw}", cache=cache, key="data.source.cache_dir"
        )
