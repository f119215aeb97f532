"""Evaluate one policy: its reference, its held-out pairs, log-ratios and samples, each computed once and on demand."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.components import build_model, build_optional
from caldpo.data.datamodule import REJECTED_ROWS, HeldOutPrompt, PairDataModule
from caldpo.data.end_tokens import end_tokens, response_text
from caldpo.data.pair import PreferencePair, TokenizedPair
from caldpo.data.split import prompt_key
from caldpo.data.token_cache import tokenizer_digest
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluation_cache import EvaluationCache, Sampling
from caldpo.evaluation.evaluation_target import SECTIONS, Target
from caldpo.evaluation.model_loading import (
    Weights,
    check_vocabulary,
    find_device,
    find_weights,
    forward_context,
    load_reference,
    load_weights,
    place,
    require_vocabulary,
)
from caldpo.evaluation.pair_scoring import score_pairs
from caldpo.evaluation.suite_base import FOLDER
from caldpo.model_data_checks import check_fit, require_prompts, tokenizer_key
from caldpo.models.adapted_policy import adapter_off, is_adapted
from caldpo.models.model_forward import NonFiniteLogitsError
from caldpo.models.model_probes import require_valid_logprobs
from caldpo.models.sampling import reference_seed, sample_responses, sampling_notes
from caldpo.reference.reference_base import ReferenceSource
from caldpo.resume.config_diff import compared_keys
from caldpo.resume.pins import DATE, first_day
from caldpo.utils.delayed_progress import DelayedProgress
from caldpo.utils.notes import print_notes

Role = Literal["policy", "reference"]

_BATCH = 16  # responses in a forward pass where no data sets a micro-batch


class EvaluatedPolicy:
    """One policy with everything that a suite may read of it.

    The constructor prepares the data; weights load when they are first needed.

    Args:
        target: the policy to evaluate.
        cache: shared with the other policies of the command.

    Raises:
        CaldpoError: the data cannot be loaded, or the run did not save the requested weights.
    """

    def __init__(self, target: Target, cache: EvaluationCache) -> None:
        self.target, self.cache, self.settings = target, cache, cache.settings
        settings = self.settings
        self.device = find_device(settings.device)
        self.precision = settings.precision or str(target.of_run("trainer.precision", "32-true"))
        self.reward_beta = float(settings.reward_beta or target.of_run("reward_beta", 0.1))
        self.weights = find_weights(target, settings.wanted)
        config = OmegaConf.create({name: target.config[name] for name in SECTIONS})
        self.source, self.adapter = build_model(config)
        self._own_reference: ReferenceSource | None = build_optional(config, "reference")
        data: PairDataModule | None = build_optional(config, "data")
        self.adapter.check()
        self.identity: str = self.source.identity()
        # by weights, and shared with the copies that `at` makes
        self._loaded: dict[Weights, PreTrainedModel] = {}  # one at a time
        self._samples: dict[tuple[Weights, Sampling], list[list[int]]] = {}
        self._log_ratios: dict[Weights, NDArray[np.float64]] = {}
        self.tokenizer: PreTrainedTokenizerBase = self.source.load_tokenizer()
        date = str(self.target.summary.get(DATE))  # a chat template may write it
        self._data_key = self._key("data", "model") + tokenizer_digest(self.tokenizer) + date
        self._data: PairDataModule | None
        self.tokenizer, self._data = cache.once(self._data_key, lambda: self._prepare(data))

    def at(self, weights: Weights) -> EvaluatedPolicy:
        """Return the same run with other weights; only the last weights used stay in memory."""
        other = copy.copy(self)
        other.weights = weights
        return other

    # -- results

    @property
    def folder(self) -> Path:
        """Folder of the results: ``evaluation/`` of the run, or one below it for other weights, data or reference."""
        below = [] if isinstance(self.settings.wanted, str) else [f"step-{self.settings.wanted}"]
        if self.target.folder == self.target.run:  # another output folder holds no results to keep apart
            below += [] if self.target.own_data else ["other-data"]
            below += [] if self.cache.reference is None else ["other-reference"]
        folder = self.target.folder.joinpath(FOLDER, *below)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # -- data

    @property
    def has_data(self) -> bool:
        """Whether there is data; without it, only prompts that a person gives can be answered."""
        return self._data is not None

    @property
    def data(self) -> PairDataModule:
        """The prepared data."""
        assert self._data is not None, "check_target requires data for whatever reads it"
        return self._data

    @cached_property
    def pairs(self) -> list[TokenizedPair]:
        """The held-out pairs, at most ``max_pairs``."""
        return self.data.test_pairs[: self.settings.max_pairs]

    @property
    def texts(self) -> list[PreferencePair]:
        """The same pairs as text."""
        return self.data.test_sources[: len(self.pairs)]

    @cached_property
    def prompts(self) -> list[str]:
        """A key of each pair's prompt: equal for pairs of one prompt."""
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
        return np.stack([self.data.true_rewards(prompts, side) for side in sides])

    def held_out(self, count: int) -> list[HeldOutPrompt]:
        """Return the first ``count`` distinct held-out prompts."""
        return self.data.held_out_prompts(count)

    def prompt_text(self, held_out: HeldOutPrompt) -> str:
        """Return a prompt as text: a conversation in the chat template, without special tokens."""
        if isinstance(held_out.prompt, str):
            return held_out.prompt
        return str(self.tokenizer.decode(held_out.prompt_ids, skip_special_tokens=True))

    # -- models

    @property
    def reference_identity(self) -> str | None:
        """One line that identifies the reference; None without one."""
        if self.cache.reference is not None:
            return self.cache.reference
        own = self._own_reference
        return None if own is None else str(own.identity(self.adapter.started_from(self.identity)))

    @property
    def starts_from_reference(self) -> bool:
        """Whether training started from the reference, so that policy and reference are equal at step 0."""
        own = self._own_reference
        return self.cache.reference is None and own is not None and not own.distinct

    def require_reference(self, suite: str) -> None:
        """Refuse a suite that needs a reference where there is none.

        Raises:
            CaldpoError: the policy is no run's and no reference was named, or its vocabulary is another.
        """
        if self.reference_identity is None:
            raise CaldpoError(
                f"suite={suite} needs a reference, and a model by itself has none",
                key="reference.path",
                remedy="name the model that training started from: reference.path=ID_OR_FOLDER",
            )
        if self.cache.reference is not None:
            require_vocabulary(self.cache.reference, self.source)

    @property
    def model(self) -> PreTrainedModel:
        """The policy on its device, in evaluation mode."""
        if self.weights not in self._loaded:
            self._loaded.clear()
            model = load_weights(self.weights, self.source, self.adapter, self.target)
            self._loaded[self.weights] = place(model, self.precision, self.device)
            self._require_valid_logprobs(self._loaded[self.weights])
        return self._loaded[self.weights]

    @contextmanager
    def reference_model(self) -> Iterator[PreTrainedModel]:
        """Open the reference as a model; for a policy with an adapter it may be the policy itself, adapter off."""
        path = self.cache.reference or self.target.of_run("reference.path", None)
        if path is None and self.adapter.keeps_reference:
            _ = self.model  # holds the base and the adapter that training started from
        if path is None and self._loaded and is_adapted(next(iter(self._loaded.values()))):
            with adapter_off(next(iter(self._loaded.values()))) as model:
                yield model
            return
        yield self.cache.model(self._model_key, lambda: self._load_reference(path))

    @contextmanager
    def model_of(self, role: Role) -> Iterator[PreTrainedModel]:
        """Open the policy or the reference, on its device."""
        if role == "policy":
            yield self.model
        else:
            with self.reference_model() as model:
                yield model

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a response, for policy and reference alike; see :mod:`caldpo.data.end_tokens`."""
        return end_tokens(self.tokenizer, self.model)

    @property
    def batch(self) -> int:
        """Largest number of responses in a forward pass."""
        return self.settings.batch or (2 * self.data.eval_micro_batch_size if self.has_data else _BATCH)

    @property
    def pad_id(self) -> int:
        """Token of the padding, which masks always exclude."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def context(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass in the run's precision."""
        return forward_context(self.precision, self.device)

    # -- log-probs and samples

    def logps(self, role: Role, pairs: Sequence[TokenizedPair], label: str = "log-probs") -> NDArray[np.float64]:
        """Sum the log-probs of both responses of any pairs, nats, shape ``(2, pairs)``."""
        with self.model_of(role) as model:
            return score_pairs(
                model,
                pairs,
                pad_id=self.pad_id,
                batch=self.batch,
                label=f"{role}: {label}",
                context=self.context,
                whose=self._owner(role),
            )

    @property
    def log_ratios(self) -> NDArray[np.float64]:
        """Log-ratios policy/reference of both responses of the held-out pairs, nats, shape ``(2, pairs)``."""
        if self.weights not in self._log_ratios:
            policy = self.logps("policy", self.pairs)  # first: an adapter's base is then in memory for the reference
            key = f"log-probs {self._reference_key} {self.settings.max_pairs}"
            reference = self.cache.once(key, lambda: self.logps("reference", self.pairs))
            self._log_ratios[self.weights] = policy - reference
        return self._log_ratios[self.weights]

    def sampling(self, prompts: int, samples: int, max_new_tokens: int | None, temperature: float) -> Sampling:
        """Complete settings of sampling; the default length is that of the run's own samples, else 256 tokens."""
        longest = max_new_tokens or int(self.target.of_run("callbacks.oracle.max_new_tokens", 256))
        return Sampling(prompts, samples, longest, temperature, self.settings.seed)

    def samples(self, role: Role, sampling: Sampling) -> list[list[int]]:
        """Sample responses to the held-out prompts, token ids: all samples of the first prompt, then of the second."""
        if role == "reference":
            return self.cache.once(f"samples {self.sampling_key(sampling)}", lambda: self._sample(role, sampling))
        key = (self.weights, sampling)
        if key not in self._samples:
            self._samples[key] = self._sample(role, sampling)
        return self._samples[key]

    def sampling_key(self, sampling: Sampling) -> str:
        """Identify the reference's samples by everything that determines them."""
        return f"{self._reference_key} {sampling} {self.ends}"

    def draw(
        self, role: Role, prompts: Sequence[list[int]], sampling: Sampling, names: Sequence[str] = ()
    ) -> list[list[int]]:
        """Sample one response to each prompt, token ids with the end token; the reference has a seed of its own.

        Args:
            role: whose responses.
            prompts: token ids of each.
            sampling: length, temperature and seed; its numbers of prompts and samples are ignored.
            names: of the prompts, for an error.

        Raises:
            CaldpoError: logits are not finite.
        """
        for line in sampling_notes(self.model, self.tokenizer, self.ends):
            self.cache.once(f"note {line}", partial(print_notes, [line]))
        ends = self.ends  # loads the policy, which may contain the reference
        with self.model_of(role) as model, DelayedProgress(f"{role}: sampling", len(prompts)) as bar, self.context():
            require_prompts(model, self.tokenizer, prompts, sampling.max_new_tokens)
            return sample_responses(
                model,
                self.tokenizer,
                prompts,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                seed=sampling.seed if role == "policy" else reference_seed(sampling.seed),
                batch_size=self.batch,
                ends=ends,
                whose=self._owner(role),
                names=names,
                on_batch=bar.advance,
            )

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a response."""
        return response_text(self.tokenizer, ids, self.ends)

    def _sample(self, role: Role, sampling: Sampling) -> list[list[int]]:
        prompts = [p for p in self.held_out(sampling.prompts) for _ in range(sampling.samples)]
        return self.draw(role, [p.prompt_ids for p in prompts], sampling, [p.origin for p in prompts if p.origin])

    def _owner(self, role: Role) -> str:
        """Name run, checkpoint and model, for an error."""
        step = "" if self.weights.step is None else f" at step {self.weights.step}"
        return f"{self.target.name}{step}: the {role}'s"

    def _load_reference(self, path: str | None) -> PreTrainedModel:
        dtype = str(self.target.of_run("reference.dtype", "same"))
        model = place(load_reference(path, dtype, self.source), self.precision, self.device)
        if path is not None:
            check_vocabulary(path, model, self.model)
        self._require_valid_logprobs(model, key="reference.path")
        return model.eval().requires_grad_(False)

    def _require_valid_logprobs(self, model: PreTrainedModel, key: str = "model") -> None:
        longest = 0
        if self.has_data:
            lengths = self.data.test_pairs.lengths()
            longest = int((lengths[:, 0] + lengths[:, 1:].max(axis=1)).max())
        with contextlib.suppress(NonFiniteLogitsError):  # scoring and sampling name run, step and rows as well
            require_valid_logprobs(model, training=False, max_length=longest, key=key)

    def _key(self, *sections: str) -> str:
        """Key of what policies share: all of these sections but what no number depends on, and the data's seed."""
        config = compared_keys({name: self.target.config[name] for name in sections})
        return json.dumps([self.identity, config | {"data.seed": None}], sort_keys=True, default=str)

    @property
    def _model_key(self) -> str:
        return f"{self._key('model', 'adapter', 'reference')} {self.reference_identity} {self.precision}"

    @property
    def _reference_key(self) -> str:
        return f"{self._model_key} {self.batch} {self._data_key}"

    def _prepare(self, data: PairDataModule | None) -> tuple[PreTrainedTokenizerBase, PairDataModule | None]:
        """Load and tokenise the held-out pairs; print the data report unless the run itself has printed it."""
        tokenizer = self.tokenizer
        if data is None:
            return tokenizer, None
        data.now = first_day(self.target.summary) or data.now
        reported = self.target.run is not None and self.target.own_data
        with contextlib.redirect_stdout(io.StringIO()) if reported else contextlib.nullcontext():
            data.prepare_pairs(tokenizer, self.folder, needs_scores=False, loss_name="none", needs_rejected=False)
        if reported:
            (self.folder / REJECTED_ROWS).unlink()  # the run's folder lists them
        check_fit(
            self.source,
            tokenizer,
            data,
            reference=self._own_reference,
            tokenizer_key=tokenizer_key(self.target.config["model"]),
        )
        return tokenizer, data
