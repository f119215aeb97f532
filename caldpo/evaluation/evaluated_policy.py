"""A policy under evaluation with its reference and its held-out pairs; what is dear is made once and on demand."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
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
from caldpo.evaluation.eval_precision import find_device, forward_context, placed
from caldpo.evaluation.evaluation_cache import EvaluationCache, Sampling
from caldpo.evaluation.evaluation_target import Target
from caldpo.evaluation.pair_scoring import score_pairs
from caldpo.evaluation.policy_weights import Weights, find_weights, load_weights
from caldpo.evaluation.reference_model import load_reference, require_vocabulary
from caldpo.evaluation.suite_result import FOLDER
from caldpo.evaluation.true_rewards import true_rewards
from caldpo.model_data_checks import check_fit, require_prompts
from caldpo.models.adapted_policy import adapter_off, is_adapted
from caldpo.models.model_forward import NonFiniteLogitsError
from caldpo.models.model_probes import require_valid_logprobs
from caldpo.models.sampling import reference_seed, sample_responses, sampling_notes
from caldpo.reference.reference_base import ReferenceSource
from caldpo.report.comparison_facts import OWN_BETA
from caldpo.report.run_files import is_number
from caldpo.resume.config_diff import bound
from caldpo.resume.template_date import clock_of
from caldpo.run_record import DATE
from caldpo.utils.delayed_progress import DelayedProgress
from caldpo.utils.notes import print_notes

Who = Literal["policy", "reference"]

_BATCH = 16  # responses a forward pass has at most where no data says more


class EvaluatedPolicy:
    """One policy, and everything that a suite may ask of it.

    Data is prepared at once; weights are loaded when the first suite asks for them.

    Args:
        target: what is evaluated.
        bench: shared with the other policies of the command.

    Raises:
        CaldpoError: the data cannot be had, or the run has not kept the wanted weights.
    """

    def __init__(self, target: Target, bench: EvaluationCache) -> None:
        self.target, self.bench, self.settings = target, bench, bench.settings
        settings = self.settings
        self.device = find_device(settings.device)
        self.precision = settings.precision or str(target.of_run("trainer.precision", "32-true"))
        self.reward_beta = float(settings.reward_beta or target.of_run("reward_beta", 0.1))
        self.weights = find_weights(target, settings.wanted)
        config = OmegaConf.create({name: target.config[name] for name in ("model", "adapter", "reference", "data")})
        self.source, self.adapter = build_model(config)
        self._own_reference: ReferenceSource | None = build_optional(config, "reference")
        data: PairDataModule | None = build_optional(config, "data")
        self.adapter.check()
        self.identity: str = self.source.identity()
        self._loaded: dict[Weights, PreTrainedModel] = {}  # one at a time
        self._sampled: dict[Sampling, list[list[int]]] = {}
        self.tokenizer: PreTrainedTokenizerBase = self.source.load_tokenizer()
        date = str(self.target.summary.get(DATE))  # which a chat template may write
        self._data_key = self._key("data", "model") + tokenizer_digest(self.tokenizer) + date
        self._data: PairDataModule | None
        self.tokenizer, self._data = bench.once(self._data_key, lambda: self._prepare(data))

    # -- places

    @property
    def folder(self) -> Path:
        """Where results go: ``evaluation/`` of the run's folder, and below it what is not of its end or its own."""
        chosen = self.settings.wanted
        below = [] if isinstance(chosen, str) else [f"step-{chosen}"]
        if self.target.folder == self.target.run:  # elsewhere nothing of the run's could be overwritten
            below += [] if self.target.own_data else ["other-data"]
            below += [] if self.bench.reference is None else ["other-reference"]
        folder = self.target.folder.joinpath(FOLDER, *below)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def own_reward_beta(self) -> float | None:
        """Reward per nat of log-ratio by the derivation of the run's own loss, as its summary says; None without one.

        The unit of ``reward_beta`` is one for all runs; this is what the loss itself claims.
        """
        value = self.target.summary.get(OWN_BETA)
        return float(value) if is_number(value) and 0 < value < math.inf else None

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
    def _longest(self) -> int:
        """Tokens of the longest held-out sequence; 0 without data."""
        if not self.has_data:
            return 0
        lengths = self.data.test_pairs.lengths()
        return int((lengths[:, 0] + lengths[:, 1:].max(axis=1)).max())

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
        return self.bench.reference is None and own is not None and not own.distinct

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
            self._require_valid_logprobs(self._loaded[self.weights])
        return self._loaded[self.weights]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a response, for policy and reference alike; see :mod:`caldpo.data.end_tokens`."""
        return end_tokens(self.tokenizer, self.policy)

    def at(self, weights: Weights) -> EvaluatedPolicy:
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
        yield self.bench.model(self._model_key, lambda: self._load_reference(path))

    def context(self) -> AbstractContextManager[object]:
        """Of every forward pass: the precision of the run."""
        return forward_context(self.precision, self.device)

    @property
    def batch(self) -> int:
        """Responses a forward pass has at most."""
        return self.settings.batch or (2 * self.data.eval_micro_batch_size if self.has_data else _BATCH)

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
                model,
                pairs,
                pad_id=self.pad_id,
                batch=self.batch,
                label=f"{who}: {label}",
                context=self.context,
                whose=self._named(who),
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
        return response_text(self.tokenizer, ids, self.ends)

    def sampled_as(self, sampling: Sampling) -> str:
        """What the reference's samples are determined by."""
        return f"{self._reference_key} {sampling} {self.ends}"

    def prompt_text(self, held_out: HeldOutPrompt) -> str:
        """A prompt as text; a conversation as the model reads it, without special tokens."""
        if isinstance(held_out.prompt, str):
            return held_out.prompt
        return str(self.tokenizer.decode(held_out.prompt_ids, skip_special_tokens=True))

    def _sample(self, who: Who, sampling: Sampling) -> list[list[int]]:
        asked = [p for p in self.held_out(sampling.prompts) for _ in range(sampling.samples)]
        return self.draw(who, [p.prompt_ids for p in asked], sampling, [p.origin for p in asked if p.origin])

    def draw(
        self, who: Who, prompts: Sequence[list[int]], sampling: Sampling, names: Sequence[str] = ()
    ) -> list[list[int]]:
        """One response to each prompt, token ids up to and including its end; the reference's by a seed of its own.

        Args:
            who: draws.
            prompts: token ids of each.
            sampling: length, temperature and seed; how many prompts and samples it names is not looked at.
            names: of the prompts, for an error.

        Raises:
            CaldpoError: logits are not finite.
        """
        for line in sampling_notes(self.policy, self.tokenizer, self.ends):
            self.bench.once(f"note {line}", partial(print_notes, [line]))
        ends = self.ends  # of the policy: it is loaded before its reference, which may lie in it
        with self.model(who) as model, DelayedProgress(f"{who}: sampling", len(prompts)) as bar, self.context():
            require_prompts(model, self.tokenizer, prompts, sampling.max_new_tokens)
            return sample_responses(
                model,
                self.tokenizer,
                prompts,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                seed=sampling.seed if who == "policy" else reference_seed(sampling.seed),
                batch_size=self.batch,
                ends=ends,
                whose=self._named(who),
                names=names,
                on_batch=bar.advance,
            )

    def _named(self, who: Who) -> str:
        """Whose values they are: run, checkpoint and model."""
        step = "" if self.weights.step is None else f" at step {self.weights.step}"
        return f"{self.target.name}{step}: the {who}'s"

    def _require_valid_logprobs(self, model: PreTrainedModel, key: str = "model") -> None:
        with contextlib.suppress(NonFiniteLogitsError):  # whoever asks for values names run, step and rows
            require_valid_logprobs(model, training=False, max_length=self._longest, key=key)

    @contextmanager
    def model(self, who: Who) -> Iterator[PreTrainedModel]:
        """The policy, or the reference, on its device."""
        if who == "policy":
            yield self.policy
        else:
            with self.reference() as model:
                yield model

    def _load_reference(self, path: str | None) -> PreTrainedModel:
        model = placed(load_reference(path, self._own_reference, self.source), self.precision, self.device)
        self._require_valid_logprobs(model, key="reference.path")
        return model.eval().requires_grad_(False)

    def _key(self, *sections: str) -> str:
        """What the policies of one command share is kept under all that they were configured by: nothing is left out
        but what no number depends on, and the seed that orders training pairs."""
        told = bound({name: self.target.config[name] for name in sections})
        return json.dumps([self.identity, told | {"data.seed": None}], sort_keys=True, default=str)

    @property
    def _model_key(self) -> str:
        return f"{self._key('model', 'adapter', 'reference')} {self.reference_identity} {self.precision}"

    @property
    def _reference_key(self) -> str:
        return f"{self._model_key} {self.batch} {self._data_key}"

    def _prepare(self, data: PairDataModule | None) -> tuple[PreTrainedTokenizerBase, PairDataModule | None]:
        tokenizer = self.tokenizer
        if data is None:
            return tokenizer, None
        data.now = clock_of(self.target.summary) or data.now
        told_before = self.target.run is not None and self.target.own_data  # and rows left out are listed in the run
        with contextlib.redirect_stdout(io.StringIO()) if told_before else contextlib.nullcontext():
            data.prepare_pairs(tokenizer, self.folder, needs_scores=False, loss_name="none", needs_rejected=False)
        if told_before:
            (self.folder / REJECTED_ROWS).unlink()
        check_fit(self.source, tokenizer, data, reference=self._own_reference)
        return tokenizer, data
