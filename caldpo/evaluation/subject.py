"""A policy under evaluation with its reference and its held-out pairs; what is dear is made once and on demand."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.data.datamodule import REJECTED_ROWS, HeldOutPrompt, PairDataModule
from caldpo.data.pair import PreferencePair, TokenizedPair
from caldpo.data.split import prompt_key
from caldpo.errors import CaldpoError
from caldpo.evaluation.bench import Sampling, Workbench
from caldpo.evaluation.points import true_rewards
from caldpo.evaluation.precision import find_device, forward_context, placed
from caldpo.evaluation.references import load_reference, require_vocabulary
from caldpo.evaluation.result import FOLDER
from caldpo.evaluation.scoring import score_pairs
from caldpo.evaluation.target import Target
from caldpo.evaluation.weights import Weights, find_weights, load_weights
from caldpo.generation import reference_seed, sample_responses
from caldpo.models.adapter import adapter_off, is_adapted
from caldpo.parts import build_parts
from caldpo.reference.bar import LateBar
from caldpo.resuming.clock import clock_of
from caldpo.resuming.record import DATE

Who = Literal["policy", "reference"]

_BATCH = 16  # responses a forward pass has at most where no data says more


class Subject:
    """One policy, and everything that a suite may ask of it.

    Data is prepared at once; weights are loaded when the first suite asks for them.

    Args:
        target: what is evaluated.
        bench: shared with the other policies of the command.

    Raises:
        CaldpoError: the data cannot be had, or the run has not kept the wanted weights.
    """

    def __init__(self, target: Target, bench: Workbench) -> None:
        self.target, self.bench, self.settings = target, bench, bench.settings
        settings = self.settings
        self.device = find_device(settings.device)
        self.precision = settings.precision or str(target.of_run("trainer.precision", "32-true"))
        self.reward_beta = float(settings.reward_beta or target.of_run("reward_beta", 0.1))
        self.weights = find_weights(target, settings.checkpoint)
        sections = [name for name in ("model", "adapter", "reference", "data") if target.config[name] is not None]
        parts = build_parts(OmegaConf.create({name: target.config[name] for name in sections}), sections)
        self.source, self.adapter, self._own_reference = parts["model"], parts["adapter"], parts.get("reference")
        self.adapter.check()
        self.identity: str = self.source.identity()
        self._loaded: dict[Weights, PreTrainedModel] = {}  # one at a time
        self._sampled: dict[Sampling, list[list[int]]] = {}
        self.tokenizer: PreTrainedTokenizerBase
        self._data: PairDataModule | None
        self.tokenizer, self._data = bench.once(self._data_key, lambda: self._prepare(parts.get("data")))

    # -- places

    @property
    def folder(self) -> Path:
        """Where results go: ``evaluation/`` of the run's folder, and below it what is not of its end or its own."""
        chosen = self.settings.checkpoint
        below = [] if isinstance(chosen, str) else [f"step-{chosen}"]
        if self.target.folder == self.target.run:  # elsewhere nothing of the run's could be overwritten
            below += [] if self.target.own_data else ["other-data"]
            below += [] if self.bench.reference is None else ["other-reference"]
        folder = self.target.folder.joinpath(FOLDER, *below)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # -- data

    @property
    def has_data(self) -> bool:
        """Whether there is data: without it, only prompts that a person gives can be answered."""
        return self._data is not None

    @property
    def data(self) -> PairDataModule:
        """The prepared data."""
        assert self._data is not None, "everything that needs data asks for it in its configuration check"
        return self._data

    @cached_property
    def pairs(self) -> list[TokenizedPair]:
        """The held-out pairs that are looked at."""
        return self.data.test_pairs[: self.settings.max_pairs]

    @property
    def texts(self) -> list[PreferencePair]:
        """The same pairs as text."""
        return self.data.test_sources[: len(self.pairs)]

    @cached_property
    def prompts(self) -> list[str]:
        """Which prompt each pair is about: equal for pairs of one prompt."""
        return [prompt_key(pair.prompt) for pair in self.texts]

    @cached_property
    def scores(self) -> NDArray[np.float64] | None:
        """True rewards of both responses, shape ``(2, pairs)``: the data's, or its known reward's; None without."""
        if self.data.test_pairs.has_scores:
            return np.array([[p.score_chosen for p in self.pairs], [p.score_rejected for p in self.pairs]], float)
        if self.data.oracle is None or any(not isinstance(p.prompt, str) for p in self.texts):
            return None
        prompts = [str(p.prompt) for p in self.texts]
        sides = [p.chosen for p in self.texts], [p.rejected for p in self.texts]
        return np.stack([true_rewards(self.data, prompts, side) for side in sides])

    def held_out(self, count: int) -> list[HeldOutPrompt]:
        """The first distinct held-out prompts."""
        return self.data.held_out_prompts(count)

    # -- models

    @property
    def reference_identity(self) -> str | None:
        """One line that says what the reference is; None where there is none."""
        if self.bench.reference is not None:
            return self.bench.reference
        own = self._own_reference
        return None if own is None else str(own.identity(self.adapter.started_from(self.identity)))

    @property
    def starts_from_reference(self) -> bool:
        """Whether training started from the very reference, so that at step 0 the two are one."""
        own = self._own_reference
        return self.bench.reference is None and own is not None and not own.differs

    def require_reference(self, suite: str) -> None:
        """Refuse a suite that compares with a reference where there is none.

        Raises:
            CaldpoError: of a model that is no run's, and no other was named.
        """
        if self.reference_identity is None:
            raise CaldpoError(
                f"suite={suite} compares the model with a reference, and there is none",
                key="reference.path",
                remedy="name the model that training started from: reference.path=ID_OR_FOLDER",
            )
        if self.bench.reference is not None:
            require_vocabulary(self.bench.reference, self.source)

    @property
    def policy(self) -> PreTrainedModel:
        """The policy on its device, in evaluation mode."""
        if self.weights not in self._loaded:
            self._loaded.clear()
            own = load_weights(self.weights, self.source, self.adapter, self.target)
            self._loaded[self.weights] = placed(own, self.precision, self.device)
        return self._loaded[self.weights]

    def at(self, weights: Weights) -> Subject:
        """The same run with other weights; only the weights asked for last are kept in memory."""
        other = copy.copy(self)
        other.weights, other._sampled = weights, {}
        other.__dict__.pop("log_ratios", None)
        return other

    @contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        """The reference as a model. Of a policy with an adapter it may be the policy itself, adapter off."""
        path = self.bench.reference or getattr(self._own_reference, "path", None)
        if path is None and self.adapter.keeps_reference:
            _ = self.policy  # the base with the adapter that training started from is in it
        if path is None and self._loaded and is_adapted(next(iter(self._loaded.values()))):
            with adapter_off(next(iter(self._loaded.values()))) as model:
                yield model
            return
        yield self.bench.model(f"{self.reference_identity} {self.precision}", lambda: self._load_reference(path))

    def context(self) -> AbstractContextManager[object]:
        """Of every forward pass: the precision of the run."""
        return forward_context(self.precision, self.device)

    @property
    def batch(self) -> int:
        """Responses a forward pass has at most."""
        return self.settings.batch or (2 * self.data.eval_pairs_per_batch if self.has_data else _BATCH)

    @property
    def pad_id(self) -> int:
        """What fills padding; no mask ever reads it."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    # -- what models say

    def logps(self, who: Who, pairs: Sequence[TokenizedPair], label: str = "log-probs") -> NDArray[np.float64]:
        """Summed log-probs of both responses of any pairs, nats, shape ``(2, pairs)``."""
        with self.model(who) as model:
            return score_pairs(
                model, pairs, pad_id=self.pad_id, batch=self.batch, label=f"{who}: {label}", context=self.context
            )

    @cached_property
    def log_ratios(self) -> NDArray[np.float64]:
        """Log-ratios policy/reference of both responses of the held-out pairs, nats, shape ``(2, pairs)``."""
        policy = self.logps("policy", self.pairs)  # first: an adapter's base is then at hand for the reference
        key = f"log-probs {self._reference_key} {self.settings.max_pairs}"
        return policy - self.bench.once(key, lambda: self.logps("reference", self.pairs))

    def samples(self, who: Who, sampling: Sampling) -> list[list[int]]:
        """Responses to the held-out prompts, token ids: all samples of the first prompt, then of the second, ..."""
        if who == "reference":
            return self.bench.once(f"samples {self.sampled_as(sampling)}", lambda: self._sample(who, sampling))
        if sampling not in self._sampled:
            self._sampled[sampling] = self._sample(who, sampling)
        return self._sampled[sampling]

    def sampling(self, prompts: int, samples: int, max_new_tokens: int | None, temperature: float) -> Sampling:
        """How to draw; without a length, as long as the run's own samples were, else 256 tokens."""
        longest = max_new_tokens or int(self.target.of_run("callbacks.oracle.max_new_tokens", 256))
        return Sampling(prompts, samples, longest, temperature, self.settings.seed)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def sampled_as(self, sampling: Sampling) -> str:
        """What the reference's samples are determined by."""
        return f"{self._reference_key} {sampling}"

    def prompt_text(self, held_out: HeldOutPrompt) -> str:
        """A prompt as text; a conversation as the model reads it, without special tokens."""
        return held_out.prompt if isinstance(held_out.prompt, str) else self.decode(held_out.prompt_ids)

    def _sample(self, who: Who, sampling: Sampling) -> list[list[int]]:
        prompts = [p.prompt_ids for p in self.held_out(sampling.prompts) for _ in range(sampling.samples)]
        return self.draw(who, prompts, sampling)

    def draw(self, who: Who, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[int]]:
        """One response to each prompt, token ids up to and including EOS; the reference's by a seed of its own.

        Args:
            who: draws.
            prompts: token ids of each.
            sampling: length, temperature and seed; how many prompts and samples it names is not looked at.
        """
        with self.model(who) as model, LateBar(f"{who}: sampling", len(prompts)) as bar, self.context():
            return sample_responses(
                model,
                self.tokenizer,
                prompts,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                seed=sampling.seed if who == "policy" else reference_seed(sampling.seed),
                batch_size=self.batch,
                done=bar.advance,
            )

    @contextmanager
    def model(self, who: Who) -> Iterator[PreTrainedModel]:
        """The policy, or the reference, on its device."""
        if who == "policy":
            yield self.policy
        else:
            with self.reference() as model:
                yield model

    def _load_reference(self, path: str | None) -> PreTrainedModel:
        model = load_reference(path, self._own_reference, self.source)
        return placed(model, self.precision, self.device).eval().requires_grad_(False)

    @property
    def _data_key(self) -> str:
        told = dict(self.target.config["data"] or {}) | {"seed": None}  # it orders training pairs and nothing else
        told[DATE] = self.target.summary.get(DATE)  # which a chat template may write
        return f"data {self.identity} {json.dumps(told, sort_keys=True, default=str)}"

    @property
    def _reference_key(self) -> str:
        return f"{self.reference_identity} {self.precision} {self.batch} {self._data_key}"

    def _prepare(self, data: PairDataModule | None) -> tuple[PreTrainedTokenizerBase, PairDataModule | None]:
        tokenizer = self.source.load_tokenizer()
        if data is None:
            return tokenizer, None
        data.now = clock_of(self.target.summary) or data.now
        told_before = self.target.run is not None and self.target.own_data  # and rows left out are listed in the run
        with contextlib.redirect_stdout(io.StringIO()) if told_before else contextlib.nullcontext():
            data.prepare_pairs(tokenizer, self.folder, needs_scores=False, loss_name="none", needs_rejected=False)
        if told_before:
            (self.folder / REJECTED_ROWS).unlink()
        return tokenizer, data
