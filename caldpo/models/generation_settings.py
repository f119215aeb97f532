"""The generation settings that come with a checkpoint (generation_config.json): not sampled by, and kept in exports.

Samples are of the policy's whole distribution, so that log-ratios of samples estimate a KL. transformers fills whatever
a caller leaves open from ``model.generation_config`` (5.24, ``GenerationMixin._prepare_generation_config``); so while
this project samples, that is an empty one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    MinPLogitsWarper,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from caldpo.models.adapters import base_model

# Values at which a setting changes nothing; None, False and empty ones never do.
_NEUTRAL: dict[str, float] = {
    "temperature": 1,
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "diversity_penalty": 0,
    "length_penalty": 1,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "penalty_alpha": 0,
}
# Settings that change neither which tokens are drawn nor with which probability; end tokens are honoured.
_HARMLESS = re.compile(
    r"_.*|do_sample|use_cache|transformers_version|max_length|max_new_tokens|\w*cache\w*|\w*compile\w*|output_\w+"
    r"|return_dict_in_generate|(?:eos|pad|bos|decoder_start)_token_id|prefill_chunk_size|is_assistant|low_memory"
    r"|num_assistant_\w+|assistant_(?:confidence|lookbehind)\w*|target_lookbehind|max_matching_ngram_size"
    r"|continuous_batching_config"
)
# What makes the step of ``generate`` that a setting asks for, and refuses values that it cannot generate with.
_STEPS: dict[str, Any] = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
}
_SAMPLED = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def unused_settings(model: PreTrainedModel) -> dict[str, Any]:
    """What the model's own settings ask for that samples of its plain distribution do not follow, by name."""
    own = getattr(base_model(model), "generation_config", None)
    if own is None:
        return {}
    known = vars(GenerationConfig())
    asked = {name: value for name, value in own.to_dict().items() if name in known and not _HARMLESS.fullmatch(name)}
    return {name: value for name, value in asked.items() if not _changes_nothing(name, value)}


@contextmanager
def without_own_settings(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model to call ``generate`` on, its adapter active, with none of its checkpoint's settings meanwhile."""
    base = base_model(model)
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield base
    finally:
        base.generation_config = own


def mended(asked: Mapping[str, Any], *, saved: bool) -> tuple[GenerationConfig, dict[str, Any]]:
    """The settings that transformers accepts, nearest to those asked for, and what was left out of them.

    Args:
        asked: settings by name, as generation_config.json has them.
        saved: whether they have to be such as transformers saves and generates with; else such as it reads.
    """
    kept = {name: value for name, value in asked.items() if value is not None and not name.startswith("_")}
    left_out: dict[str, Any] = {}
    if saved:
        left_out = {name: kept.pop(name) for name in _unusable(kept)}
    told = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # what is wrong is mended here, and said by the caller
    try:
        while True:
            try:
                settings = GenerationConfig(**kept)
                if saved:
                    settings.validate(strict=True)
                return settings, left_out
            except Exception as error:  # of whatever kind the values lead to
                left_out |= {name: kept.pop(name) for name in _blamed(str(error), kept)}
    finally:
        transformers.utils.logging.set_verbosity(told)


def readable_settings(path: str, revision: str | None) -> tuple[GenerationConfig | None, dict[str, Any]]:
    """Settings in place of a generation_config.json that transformers cannot load, and what was left out of them.

    None where it can, or where there is no such file: a setting that is about nothing but generation must not keep a
    model from being loaded.
    """
    try:
        GenerationConfig.from_pretrained(path, revision=revision or "main")
        return None, {}
    except OSError:
        return None, {}
    except Exception:  # ValueError, TypeError, ...: it is found out below what it is about
        file = cached_file(path, GENERATION_CONFIG_NAME, revision=revision or "main")
        asked = json.loads(Path(str(file)).read_text(encoding="utf-8"))
        return mended(asked, saved=False) if isinstance(asked, dict) else (GenerationConfig(), {"all": "no settings"})


def listed(settings: dict[str, Any]) -> str:
    """``repetition_penalty=1.3, num_beams=4``, long values elided."""
    texts = {name: str(value) for name, value in settings.items()}
    return ", ".join(f"{name}={text if len(text) <= 40 else text[:37] + '...'}" for name, text in texts.items())


def _changes_nothing(name: str, value: Any) -> bool:
    if value is None or value is False or value in ([], {}, ""):
        return True
    return name in _NEUTRAL and isinstance(value, int | float) and value == _NEUTRAL[name]


def _unusable(kept: dict[str, Any]) -> list[str]:
    """Names of the settings that nothing can be generated with; whether to sample is settled in ``kept`` on the way.

    A temperature without a word on sampling plainly means to sample. Temperature 0 means the likeliest token.
    """
    if kept.get("temperature") == 0:
        kept["do_sample"] = False
    elif "do_sample" not in kept and any(not _changes_nothing(name, kept.get(name)) for name in _SAMPLED):
        kept["do_sample"] = True
    steps = {name: make for name, make in _STEPS.items() if kept.get("do_sample") is True or name not in _SAMPLED}
    return [name for name, make in steps.items() if name in kept and not _generates(name, kept[name], make)]


def _generates(name: str, value: Any, make: Callable[[Any], object]) -> bool:
    if _changes_nothing(name, value):
        return True
    try:
        make(value)
    except Exception:  # of whatever kind the value leads to
        return False
    return math.isfinite(value)


def _blamed(problem: str, kept: Mapping[str, Any]) -> list[str]:
    """Which of the settings an error is about: it names them in backticks, or they fail alone; else all."""
    first = re.findall(r"^- `(\w+)`", problem, re.MULTILINE) or re.findall(r"`(\w+)`", problem)
    return (
        [name for name in dict.fromkeys(first) if name in kept]
        or [name for name, value in kept.items() if not _stands_alone(name, value)]
        or list(kept)
    )


def _stands_alone(name: str, value: Any) -> bool:
    try:
        GenerationConfig(**{name: value})
    except Exception:
        return False
    return True
