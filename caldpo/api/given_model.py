"""A model given from Python as what a run can name: one in memory is written once, under its digest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from caldpo.api.trained_run import Run
from caldpo.config.conf_dir import is_option
from caldpo.errors import CaldpoError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODELS = "models"  # below the cache: one folder for each content
Model: TypeAlias = "str | Path | PreTrainedModel"
"""A folder in the hub's format, the id of a model of the hub, or a model in memory."""
Tokenizer: TypeAlias = "str | Path | PreTrainedTokenizerBase"
"""A folder, an id of the hub, or a tokenizer in memory."""


def model_settings(model: Model, tokenizer: Tokenizer | None, cache: Path, own: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the settings that train this model.

    A name is that of a folder; else of an option of ``conf/model``, or of ``model`` in ``own`` folders of yamls, with
    the settings of that option; else of a model of the hub. All but an option have the settings of ``model=hf``.

    Raises:
        CaldpoError: it is of no known kind, or in memory without a tokenizer.
    """
    settings: dict[str, Any] = {"model": "hf"}
    if isinstance(model, str | Path):
        name = str(model)
        chosen = name not in ("base", "hf") and not Path(name).exists() and is_option("model", name, own)
        settings = {"model": name} if chosen else {**settings, "model.path": name}
        if tokenizer is not None:
            settings["model.tokenizer"] = tokenizer_name(tokenizer, cache)
        return settings
    return {**settings, "model.path": model_folder(model, tokenizer, cache)}


def model_folder(model: PreTrainedModel, tokenizer: Tokenizer | None, cache: Path, key: str = "model") -> str:
    """Write a model in memory with its tokenizer into a folder, unless the same was written before.

    Args:
        model: on any device; it is left as it is.
        tokenizer: of the model.
        cache: the folder is below.
        key: argument of the call that gave the model.

    Raises:
        CaldpoError: it is no model of transformers, or has no tokenizer.
    """
    from transformers import PreTrainedModel

    from caldpo.data.token_cache import tokenizer_digest
    from caldpo.models.hub_model import load_tokenizer
    from caldpo.reference.fingerprint import model_configuration, weights_digest
    from caldpo.utils.digests import json_digest
    from caldpo.utils.folder_cache import cached_folder

    if not isinstance(model, PreTrainedModel):
        raise CaldpoError(
            f"is a {type(model).__name__}, which is no model of transformers",
            key=key,
            remedy="give a folder, the id of a model of the hub, or a PreTrainedModel with tokenizer=; of a model of"
            " PEFT give the base, and adapter=lora in settings",
        )
    if tokenizer is None:
        raise CaldpoError(
            "a model in memory does not say what tokenizer it reads",
            key="tokenizer",
            remedy="give tokenizer=AutoTokenizer.from_pretrained(...), or its folder",
        )
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(str(tokenizer), key="tokenizer")
    generation = model.generation_config.to_dict() if model.can_generate() else {}
    facts = [weights_digest(model), model_configuration(model), generation, tokenizer_digest(tokenizer)]

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    name = f"{type(model).__name__}-{json_digest(facts)[:16]}"
    return str(cached_folder(cache / MODELS, name, write, key=key))


def read_model(
    model: Model | Run, tokenizer: Tokenizer | None, key: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a model to compute with, and its tokenizer, if it brings one; one in memory stays as it is.

    Raises:
        CaldpoError: it is of no known kind, or cannot be loaded.
    """
    from torch import nn

    from caldpo.models.hub_model import load_causal_lm, load_tokenizer

    given = load_tokenizer(str(tokenizer), key="tokenizer") if isinstance(tokenizer, str | Path) else tokenizer
    if isinstance(model, Run):
        return model.policy, model.tokenizer if given is None else given
    if isinstance(model, str | Path):
        loaded = load_causal_lm(str(model), key=key, dtype="auto").eval()
        return loaded, load_tokenizer(str(model), key=key) if given is None else given
    if not (isinstance(model, nn.Module) and hasattr(model, "config")):
        raise CaldpoError(
            f"is a {type(model).__name__}",
            key=key,
            remedy="give a caldpo.Run, a folder, the id of a model of the hub, or a model of transformers",
        )
    return model, given  # a model of PEFT does as well


def tokenizer_name(tokenizer: Tokenizer, cache: Path) -> str:
    """Return a tokenizer's name; of one in memory the folder below the cache that it is written into."""
    if isinstance(tokenizer, str | Path):
        return str(tokenizer)
    from caldpo.data.token_cache import tokenizer_digest
    from caldpo.utils.folder_cache import cached_folder

    name = f"tokenizer-{tokenizer_digest(tokenizer)[:16]}"
    return str(cached_folder(cache / MODELS, name, tokenizer.save_pretrained, key="tokenizer"))
