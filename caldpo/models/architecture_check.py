"""Whether a configuration is that of a decoder-only language model: asked before weights are fetched or read."""

from __future__ import annotations

import re
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from caldpo.errors import CaldpoError

_OTHER_HEAD = re.compile(r"(?:For(?!CausalLM)[A-Z]\w*|DoubleHeadsModel)$")
_SENSES = ("vision_config", "audio_config")


def require_decoder(config: PretrainedConfig, *, key: str, path: str) -> None:
    """Refuse what is no decoder-only language model, or has no output head to predict tokens with.

    transformers would load a classifier's or a headless checkpoint all the same, with a head of random weights.

    Args:
        config: of the model.
        key: configuration key of ``path``.
        path: hub id or folder.

    Raises:
        CaldpoError: naming ``key``.
    """
    why = _why_not(config)
    if why is not None:
        raise CaldpoError(
            f"is no decoder-only language model: {why}",
            key=key,
            value=path,
            remedy="name a text model that AutoModelForCausalLM loads, such as those of conf/model",
        )


def causal_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class that a configuration is loaded as; None where it brings code of its own, or has no such class."""
    found: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)  # transformers has no public way to ask
    return found[0] if isinstance(found, tuple | list) else found


def _why_not(config: PretrainedConfig) -> str | None:
    if getattr(config, "is_encoder_decoder", False):
        return f"its config.json describes an encoder-decoder ({config.model_type})"
    senses = [name for name in _SENSES if getattr(config, name, None) is not None]
    if senses:
        return f"its config.json has a {' and a '.join(senses)}: it takes more than text ({config.model_type})"
    if getattr(config, "auto_map", None):  # its own code says what it is
        return None
    loaded_as = causal_class(config)
    if loaded_as is None:
        return f"transformers has none of the type {config.model_type}"
    stored = [str(name) for name in getattr(config, "architectures", None) or ()]
    if stored and loaded_as.__name__ not in stored:
        tied = getattr(config, "tie_word_embeddings", False)
        headless = [name for name in stored if name.endswith("Model") and "LM" not in name and not tied]
        wrong = [name for name in stored if _OTHER_HEAD.search(name)] or headless
        if wrong:
            return f"its weights are those of a {wrong[0]}, without the output head of {loaded_as.__name__}"
    if getattr(config, "is_decoder", True) is False and type(config) in AutoModelForMaskedLM._model_mapping:
        return f"it is an encoder ({config.model_type}, is_decoder=false), whose log-probs see the tokens they predict"
    return None
