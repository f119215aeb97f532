"""A model given from Python as what a run can name: one in memory is written once, under its digest."""

from __future__ import annotations

import reprlib
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
    tokenizer = read_tokenizer(tokenizer)
    generation = model.generation_config.to_dict() if model.can_generate() else {}
    facts = [weights_digest(model), model_configuration(model), generation, tokenizer_digest(tokenizer)]

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    name = f"{type(model).__name__}-{json_digest(facts)[:16]}"
    return str(cached_folder(cache / MODELS, name, write, key=key))


def run_or_model(model: Model | Run, key: str) -> Model | Run:
    """Return the run of a folder that holds one, and a model as it was given; ``key`` is the argument's.

    Raises:
        CaldpoError: it is of no known kind.
    """
    from torch import nn

    if isinstance(model, str | Path):
        return Run(Path(model)) if is_run_folder(model) else model
    if not (isinstance(model, Run) or (isinstance(model, nn.Module) and hasattr(model, "config"))):
        raise CaldpoError(
            f"is a {type(model).__name__}",
            key=key,
            remedy="give a caldpo.Run, a folder, the id of a model of the hub, or a model of transformers",
        )
    return model  # a model of PEFT does as well


def reference_name(reference: Model | Run, tokenizer: Tokenizer | None, cache: Path) -> str:
    """Return the name of a reference: of a run the folder of its policy, of a model in memory that it is written to."""
    given = run_or_model(reference, "reference")
    if isinstance(given, str | Path):
        return str(given)
    if not isinstance(given, Run):
        return model_folder(given, tokenizer, cache, "reference")
    saved = given.folder / "policy"
    has_model = (saved / "config.json").is_file()  # else it is an adapter, or only checkpoints are left
    return str(saved) if has_model else model_folder(given.policy, given.tokenizer, cache, "reference")


def is_run_folder(name: str | Path) -> bool:
    """Tell whether a name is that of a folder of runs, and of no model in the hub's format, nor on the hub."""
    folder = Path(name).expanduser()
    return folder.is_dir() and not (folder / "config.json").is_file()  # which the hub's format has, and no run


def own_tokenizer(model: Model | Run, key: str) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a run, or the one that lies with a model; None where there is none."""
    from caldpo.models.hub_files import has_tokenizer
    from caldpo.models.hub_model import load_tokenizer

    if isinstance(model, Run):
        return model.tokenizer
    lies_there = isinstance(model, str | Path) and has_tokenizer(str(model))
    return load_tokenizer(str(model), key=key) if lies_there else None


def read_model(model: Any, key: str) -> PreTrainedModel:
    """Load what :func:`run_or_model` returned, to compute with; a model in memory stays as it is."""
    from caldpo.models.hub_model import load_causal_lm

    if isinstance(model, Run):
        return model.policy
    return load_causal_lm(str(model), key=key, dtype="auto").eval() if isinstance(model, str | Path) else model


def read_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    """Load a tokenizer; one in memory stays as it is.

    Raises:
        CaldpoError: it is of no known kind, or cannot be loaded.
    """
    from transformers import PreTrainedTokenizerBase

    from caldpo.models.hub_model import load_tokenizer

    if isinstance(tokenizer, str | Path):
        return load_tokenizer(str(tokenizer), key="tokenizer")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise CaldpoError(
            f"is a {type(tokenizer).__name__}, which is no tokenizer of transformers",
            key="tokenizer",
            value=reprlib.repr(tokenizer),
            remedy="give AutoTokenizer.from_pretrained(...), or the folder or id of the hub that it is loaded from",
        )
    return tokenizer


def tokenizer_name(tokenizer: Tokenizer, cache: Path) -> str:
    """Return a tokenizer's name; of one in memory the folder below the cache that it is written into."""
    if isinstance(tokenizer, str | Path):
        return str(tokenizer)
    from caldpo.data.token_cache import tokenizer_digest
    from caldpo.utils.folder_cache import cached_folder

    tokenizer = read_tokenizer(tokenizer)
    name = f"tokenizer-{tokenizer_digest(tokenizer)[:16]}"
    return str(cached_folder(cache / MODELS, name, tokenizer.save_pretrained, key="tokenizer"))
