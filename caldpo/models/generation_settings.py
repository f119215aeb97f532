"""Handle the generation settings of a checkpoint (generation_config.json): ignored in sampling, kept in exports.

Samples are of the policy's full distribution, so that log-ratios of samples estimate a KL. transformers fills settings
that a caller leaves open from ``model.generation_config`` (5.24, ``GenerationMixin._prepare_generation_config``); so it
is an empty one while this project samples.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
from transformers.utils import GENERATION_CONFIG_NAME, cached_file, logging

from caldpo.models.adapted_policy import base_model
from caldpo.utils.hub_access import cache_only

# Settings without effect at 1 or at 0, as all are at None, False or an empty value.
_NEUTRAL_AT_1 = re.compile(
    r"temperature|top_p|typical_p|(encoder_)?repetition_penalty|num_beams|num_beam_groups|num_return_sequences"
    r"|length_penalty|guidance_scale"
)
_NEUTRAL_AT_0 = re.compile(
    r"top_k|min_p|(epsilon|eta)_cutoff|(encoder_)?no_repeat_ngram_size|diversity_penalty|min_length|min_new_tokens"
    r"|penalty_alpha"
)
# Settings that change neither the tokens nor their probabilities; end tokens are honoured.
_HARMLESS = re.compile(
    r"_.*|do_sample|use_cache|transformers_version|max_length|max_new_tokens|\w*cache\w*|\w*compile\w*|output_\w+"
    r"|return_dict_in_generate|(?:eos|pad|bos|decoder_start)_token_id|prefill_chunk_size|is_assistant|low_memory"
    r"|num_assistant_\w+|assistant_(?:confidence|lookbehind)\w*|target_lookbehind|max_matching_ngram_size"
    r"|continuous_batching_config"
)
# Classes that ``generate`` builds for a setting; they refuse values that it cannot generate with.
_PROCESSORS: dict[str, Any] = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
}
_SAMPLED = _PROCESSORS.keys() - {"repetition_penalty"}


def unused_settings(model: PreTrainedModel) -> dict[str, Any]:
    """Find the model's own settings, by name, that samples of its plain distribution do not follow."""
    own = getattr(base_model(model), "generation_config", None)
    if own is None:
        return {}
    known = vars(GenerationConfig())
    settings = {name: value for name, value in own.to_dict().items() if name in known and not _HARMLESS.fullmatch(name)}
    return {name: value for name, value in settings.items() if not _is_neutral(name, value)}


@contextmanager
def errors_only() -> Iterator[None]:
    """Silence what transformers logs below an error."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def without_own_settings(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Reset the checkpoint's settings while active; yields the model to call ``generate`` on, its adapter active."""
    base = base_model(model)
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield base
    finally:
        base.generation_config = own


def valid_settings(settings: Mapping[str, Any], *, saved: bool) -> tuple[GenerationConfig, dict[str, Any]]:
    """Drop settings until transformers accepts the others; return its configuration, and what was dropped.

    ``saved``: it has to save them and generate with them; else it has to read them.
    """
    valid = {name: value for name, value in settings.items() if value is not None and not name.startswith("_")}
    dropped: dict[str, Any] = {}
    if saved:
        dropped = {name: valid.pop(name) for name in _unusable(valid)}
    with errors_only():  # faults are handled here, and reported by the caller
        while True:
            try:
                config = GenerationConfig(**valid)
                if saved:
                    config.validate(strict=True)
                return config, dropped
            except Exception as error:  # of any kind, depending on the values
                dropped |= {name: valid.pop(name) for name in _names_at_fault(str(error), valid)}


def readable_settings(path: str, revision: str | None) -> tuple[GenerationConfig | None, dict[str, Any]]:
    """Replace a generation_config.json that transformers cannot load; return its valid settings, and what was dropped.

    None where transformers can load it, or where there is no such file: a setting that only generation reads must not
    prevent a model from loading.
    """
    local = cache_only(path, revision)
    try:
        with suppress(OSError):
            GenerationConfig.from_pretrained(path, revision=revision or "main", local_files_only=local)
        return None, {}
    except Exception:  # ValueError, TypeError, ...: examined below
        file = cached_file(path, GENERATION_CONFIG_NAME, revision=revision or "main", local_files_only=local)
        content = json.loads(Path(str(file)).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            return GenerationConfig(), {"all": "no settings"}
        return valid_settings(content, saved=False)


def format_settings(settings: dict[str, Any]) -> str:
    """Format as ``repetition_penalty=1.3, num_beams=4``, long values truncated."""
    texts = {name: str(value) for name, value in settings.items()}
    return ", ".join(f"{name}={text if len(text) <= 40 else text[:37] + '...'}" for name, text in texts.items())


def _is_neutral(name: str, value: Any) -> bool:
    if value is None or value is False or value in ([], {}, ""):
        return True
    neutral = {1.0: _NEUTRAL_AT_1, 0.0: _NEUTRAL_AT_0}.get(value) if isinstance(value, int | float) else None
    return neutral is not None and neutral.fullmatch(name) is not None


def _unusable(settings: dict[str, Any]) -> list[str]:
    """Name the settings that ``generate`` refuses, and set ``do_sample`` in ``settings``.

    A temperature without ``do_sample`` means to sample. Temperature 0 means the likeliest token.
    """
    if settings.get("temperature") == 0:
        settings["do_sample"] = False
    elif "do_sample" not in settings and any(not _is_neutral(name, settings.get(name)) for name in _SAMPLED):
        settings["do_sample"] = True
    sampled = settings.get("do_sample") is True
    processors = {name: kind for name, kind in _PROCESSORS.items() if sampled or name not in _SAMPLED}
    return [name for name, kind in processors.items() if name in settings and not _accepts(name, settings[name], kind)]


def _accepts(name: str, value: Any, processor: Callable[[Any], object]) -> bool:
    if _is_neutral(name, value):
        return True
    try:
        processor(value)
    except Exception:  # of any kind, depending on the value
        return False
    return math.isfinite(value)


def _names_at_fault(message: str, settings: Mapping[str, Any]) -> list[str]:
    """Name the settings that an error is about: it has them in backticks, or they fail alone; else all."""
    quoted = re.findall(r"^- `(\w+)`", message, re.MULTILINE) or re.findall(r"`(\w+)`", message)
    names = [name for name in dict.fromkeys(quoted) if name in settings]
    for name, value in {} if names else settings.items():
        try:
            GenerationConfig(**{name: value})
        except Exception:
            names.append(name)
    return names or list(settings)
