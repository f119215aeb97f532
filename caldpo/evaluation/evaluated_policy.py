"""Evaluate one policy: its reference, its held-out pairs, log-ratios and samples, each computed once and on demand."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.components import build_model, build_optional
from caldpo.data.datamodule import HeldOutPrompt, PairDataModule
from caldpo.data.end_tokens import end_tokens, response_text
from caldpo.data.pair import PreferencePair, TokenizedPair, prompt_key
from caldpo.data.rejected_rows import REJECTED_ROWS
from caldpo.data.token_cache import tokenizer_digest
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluation_cache import EvaluationCache, Role, Sampling
from caldpo.evaluation.evaluation_target import SECTIONS, Target
from caldpo.evaluation.model_loading import (
    REFERENCE_KEY,
    Weights,
    find_device,
    find_weights,
    load_reference,
    load_weights,
    place,
    require_vocabulary,
)
from caldpo.evaluation.pair_scoring import score_pairs
from caldpo.evaluation.suite_base import FOLDER
from caldpo.model_data_checks import check_fit, require_prompts
from caldpo.models.adapted_policy import adapter_off, is_adapted
from caldpo.models.model_forward import NonFiniteLogitsError
from caldpo.models.model_probes import require_valid_logprobs
from caldpo.models.sampling import reference_seed, sample_responses, sampling_notes
from caldpo.reference.reference_base import ReferenceSource
from caldpo.reference.reference_load import check_vocabulary
from caldpo.resume.config_diff import compared_keys
from caldpo.resume.pins import DATE, first_day
from caldpo.utils.delayed_progress import DelayedProgress
from caldpo.utils.notes import print_notes

_BATCH = 16  # responses in a forward pass where no data sets a micro-batch
_AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class EvaluatedPolicy:
    """One policy with everything that a suite may read of it.

    The constructor prepares the data; weights load when they are first needed.

    Raises:
        CaldpoError: the data cannot be loaded, or the run did not save the requested weights.
    """

    def __init__(self, target: Target, cache: EvaluationCache) -> None:
        self.target, self.cache, self.settings = target, cache, cache.settings
        self._own_cache = EvaluationCache(cache.settings)  # of what no other policy needs
        settings = self.settings
        self.device = find_device(settings.device)
        self.precision = settings.precision or str(target.of_run("trainer.precision", "32-true"))
        self.reward_beta = float(settings.reward_beta or target.of_run("reward_beta", 0.1))
        self.weights = find_weights(target, settings.wanted)
        config = OmegaConf.create({name: target.config[name] for name in SECTIONS})
        self.source, self.adapter = build_model(config)
        self._own_reference: ReferenceSource | None = build_optional(config, "reference")
        data: PairDataModule | None = build_optional(config, "data")
        if data is not None:
            data.source.attach_model(self.source)
        self.adapter.check()
        self.identity: str = self.source.identity()
        self.tokenizer: PreTrainedTokenizerBase = self.source.load_tokenizer()
        # policies share the data if they agree in the first, the reference if in the second, its outputs if in both
        date = target.summary.get(DATE)  # a chat template may write it
        data_key = self._key(("model", "data"), self.identity, tokenizer_digest(self.tokenizer), date)
        models = self.identity, self.reference_identity, self.precision
        self._reference_key = self._key(("model", "adapter", "reference"), *models)
        self._shared_key = data_key + self._reference_key
        self._data: PairDataModule | None
        self.tokenizer, self._data = cache.once(f"data {data_key}", lambda: (self.tokenizer, self._prepare(data)))

    def at(self, weights: Weights) -> EvaluatedPolicy:
        """Return the same run with other weights; only the last weights used stay in memory."""
        other = copy.copy(self)
        other.weights = weights
        return other

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
    def texts(self) -> Sequence[PreferencePair]:
        """The same pairs as text."""
        return self.data.test_sources[: len(self.pairs)]

    @cached_property
    def prompts(self) -> list[str]:
        """A key of each pair's prompt: equal for pairs of one prompt."""
        return [prompt_key(pair.prompt) for pair in self.texts]

    @cached_property
    def scores(self) -> NDArray[np.float64] | None:
        """True rewards of both responses, shape ``(2, pairs)``: the data's, or its known reward's; None without."""
        if self.data.test_pairs.has_scores and not self.data.test_pairs.is_unpaired:
            return np.array([[p.score_chosen for p in self.pairs], [p.score_rejected for p in self.pairs]], float)
        if self.data.oracle is None or any(not isinstance(p.prompt, str) for p in self.texts):
            return None
        prompts = [str(p.prompt) for p in self.texts]
        sides = [p.chosen for p in self.texts], [p.rejected for p in self.texts]
        return np.stack([self.data.true_rewards(prompts, side) for side in sides])

    def held_out(self, count: int) -> list[HeldOutPrompt]:
        """Return the first ``count`` distinct held-out prompts."""
        return self.data.held_out_prompts(count)

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
                key=REFERENCE_KEY,
                remedy="name the model that training started from: reference.path=ID_OR_FOLDER",
            )
        if self.cache.reference is not None:
            require_vocabulary(self.cache.reference, self.source, self.tokenizer)

    @property
    def model(self) -> PreTrainedModel:
        """The policy on its device, in evaluation mode."""
        return self.cache.model("policy", f"{self.target.folder} {self.weights}", self._load_policy)

    @contextmanager
    def model_of(self, role: Role) -> Iterator[PreTrainedModel]:
        """Open the policy or the reference; with an adapter the reference may be the policy itself, adapter off."""
        policy = self.model  # first: it may hold the reference
        path = self.cache.reference or self.target.of_run(REFERENCE_KEY, None)
        if role == "policy":
            yield policy
        elif path is None and is_adapted(policy):
            with adapter_off(policy) as base:
                yield base
        else:
            yield self.cache.model("reference", self._reference_key, lambda: self._load_reference(path))

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a response, for policy and reference alike; see :mod:`caldpo.data.end_tokens`."""
        return end_tokens(self.tokenizer, self.model)

    @property
    def batch(self) -> int:
        """Largest number of responses in a forward pass."""
        return self.settings.batch or (2 * self.data.eval_micro_batch_size if self.has_data else _BATCH)

    def context(self) -> AbstractContextManager[object]:
        """Return the context of Lightning's forward pass in the run's precision."""
        dtype = _AUTOCAST_DTYPES.get(self.precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    # -- log-probs and samples

    def once(self, role: Role, key: str, compute: Callable[[], Any]) -> Any:
        """Return what is computed of these weights, or of the reference by all policies that have it, only once."""
        if role == "policy":
            return self._own_cache.once(f"{key} {self.weights}", compute)
        return self.cache.once(f"{key} {self._shared_key} {self.batch} {self.ends}", compute)

    def logps(self, role: Role, pairs: Sequence[TokenizedPair], label: str = "log-probs") -> NDArray[np.float64]:
        """Sum the log-probs of both responses of any pairs, nats, shape ``(2, pairs)``."""
        pad = self.tokenizer.pad_token_id
        with self.model_of(role) as model:
            return score_pairs(
                model,
                pairs,
                pad_id=int(self.tokenizer.eos_token_id if pad is None else pad),
                batch=self.batch,
                label=f"{role}: {label}",
                context=self.context,
                whose=self._owner(role),
            )

    @property
    def log_ratios(self) -> NDArray[np.float64]:
        """Log-ratios policy/reference of both responses of the held-out pairs, nats, shape ``(2, pairs)``."""
        policy = self.once("policy", "log-probs", lambda: self.logps("policy", self.pairs))
        return policy - self.once("reference", "log-probs", lambda: self.logps("reference", self.pairs))

    def sampling(self, prompts: int, samples: int, max_new_tokens: int | None, temperature: float) -> Sampling:
        """Complete settings of sampling; the default length is that of the run's own samples, else 256 tokens."""
        longest = max_new_tokens or int(self.target.of_run("callbacks.oracle.max_new_tokens", 256))
        return Sampling(prompts, samples, longest, temperature, self.settings.seed)

    def samples(self, role: Role, sampling: Sampling) -> list[list[int]]:
        """Sample responses to the held-out prompts, token ids: all samples of the first prompt, then of the second."""
        prompts = [p for p in self.held_out(sampling.prompts) for _ in range(sampling.samples)]
        ids, names = [p.prompt_ids for p in prompts], [p.origin for p in prompts if p.origin]
        return self.once(role, f"samples {sampling}", lambda: self.draw(role, ids, sampling, names))

    def draw(
        self, role: Role, prompts: Sequence[list[int]], sampling: Sampling, names: Sequence[str] = ()
    ) -> list[list[int]]:
        """Sample one response to each prompt, token ids with the end token; the reference has a seed of its own.

        Args:
            role: whose responses.
            prompts: token ids of each.
            sampling: its numbers of prompts and samples are ignored.
            names: of the prompts, for an error.

        Raises:
            CaldpoError: logits are not finite.
        """
        for line in sampling_notes(self.model, self.tokenizer, self.ends):
            self.cache.once(f"note {line}", partial(print_notes, [line]))
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
                ends=self.ends,
                whose=self._owner(role),
                names=names,
                on_batch=bar.advance,
            )

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a response."""
        return response_text(self.tokenizer, ids, self.ends)

    # -- preparing and loading

    def _key(self, sections: Sequence[str], *more: Any) -> str:
        """Join sections of the configuration, without what no number depends on, and other values to a key."""
        keys = compared_keys({name: self.target.config[name] for name in sections})
        keys.pop("data.seed", None)
        return json.dumps([keys, *more], sort_keys=True, default=str)

    def _owner(self, role: Role) -> str:
        """Name run, checkpoint and model, for an error."""
        step = "" if self.weights.step is None else f" at step {self.weights.step}"
        return f"{self.target.name}{step}: the {role}'s"

    def _prepare(self, data: PairDataModule | None) -> PairDataModule | None:
        """Load and tokenise the held-out pairs; print the data report unless the run itself has printed it."""
        if data is None:
            return None
        data.now = first_day(self.target.summary) or data.now
        reported = self.target.run is not None and self.target.own_data
        with contextlib.redirect_stdout(io.StringIO()) if reported else contextlib.nullcontext():
            any_rows: Any = {"needs_scores": False, "needs_rejected": False, "takes_unpaired": True}
            data.prepare_pairs(self.tokenizer, self.folder, loss_name="none", **any_rows)
        if reported:
            (self.folder / REJECTED_ROWS).unlink()  # the run's folder lists them
        section = self.target.config["model"]
        check_fit(self.source, self.tokenizer, data, reference=self._own_reference, model_section=section)
        return data

    def _load_policy(self) -> PreTrainedModel:
        model = place(load_weights(self.weights, self.source, self.adapter, self.target), self.precision, self.device)
        self._require_valid_logprobs(model, key="model")
        return model

    def _load_reference(self, path: str | None) -> PreTrainedModel:
        dtype = str(self.target.of_run("reference.dtype", "same"))
        model = place(load_reference(path, dtype, self.source), self.precision, self.device)
        if path is not None:
            check_vocabulary(path, model, self.model)
        self._require_valid_logprobs(model, key=REFERENCE_KEY)
        return model

    def _require_valid_logprobs(self, model: PreTrainedModel, key: str) -> None:
        longest = 0
        if self.has_data:
            lengths = self.data.test_pairs.lengths()
            longest = int((lengths[:, 0] + lengths[:, 1:].max(axis=1)).max())
        with contextlib.suppress(NonFiniteLogitsError):  # scoring and sampling name run, step and rows as well
            require_valid_logprobs(model, training=False, max_length=longest, key=key)
