"""Find a run's weights, write them with their card, upload them if asked: ``python -m caldpo.export``."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from caldpo import __version__
from caldpo.checkpointing.manifest import wanted_checkpoint
from caldpo.components import build_model
from caldpo.config.run_lifecycle import write_json
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluation_target import Target, find_folders, read_target
from caldpo.evaluation.model_loading import find_weights, load_weights
from caldpo.exporting.export_policy import export_notes, in_dtype, write_policy
from caldpo.exporting.export_settings import RECORD, ExportSettings, default_dir, export_dir
from caldpo.exporting.hub_upload import prepare_repository, upload
from caldpo.exporting.model_card import CARD, Exported, published_base, write_card
from caldpo.models.adapted_policy import is_adapted
from caldpo.models.hub_model import load_tokenizer
from caldpo.models.merged_adapter import merged
from caldpo.utils.atomic_io import atomic_folder
from caldpo.utils.notes import print_notes


def export_run(cfg: DictConfig) -> None:
    """Export the one run that ``cfg`` names.

    Raises:
        CaldpoError: the run has not kept the wanted weights, the folder cannot be written, or the hub refuses.
    """
    settings = ExportSettings(**{f.name: cfg[f.name] for f in fields(ExportSettings)})
    transformers.utils.logging.disable_progress_bar()
    find_keys = OmegaConf.create({"run": cfg.run, "output": None, "allow_untrusted_code": cfg.allow_untrusted_code})
    (folder,) = find_folders(find_keys)
    assert folder is not None, "the configuration check has found one"
    target = read_target(find_keys, folder)
    weights = find_weights(target, wanted_checkpoint(settings.checkpoint))
    middle = weights.step if weights.step != target.steps else None
    to = default_dir(folder, middle, merged=settings.merge) if settings.to is None else Path(settings.to)
    place = export_dir(to, folder)

    model, adapter = build_model(OmegaConf.create({k: target.config[k] for k in ("model", "adapter")}))
    adapter.check()
    adapted = target.config["adapter"]["_target_"] != "caldpo.models.adapters.NoAdapter"
    if settings.merge and not adapted:
        raise CaldpoError("the run trained no adapter that could be merged", key="merge", value=True)
    if settings.push_to is not None:
        if adapted and not settings.merge and published_base(target.config, target.summary) is None:
            raise CaldpoError(
                "an adapter is of no use on the hub without its base",
                key="push_to",
                value=settings.push_to,
                remedy="add merge=true",
            )
        prepare_repository(settings.push_to, private=settings.private)

    tokenizer = tokenizer_of(target, model)
    policy = load_weights(weights, model, adapter, target)
    if settings.merge:  # in the dtype that is written: a narrower base would round the sum first
        policy = merged(policy, None if settings.dtype is None else getattr(torch, settings.dtype))
    policy = in_dtype(policy, settings.dtype)
    if not is_adapted(policy):  # of an adapter no generation settings are written
        print_notes(export_notes(policy, tokenizer))
    what = Exported(weights.step, weights.step == target.steps, adapter=is_adapted(policy), merged=settings.merge)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(place) as draft:
            write_policy(policy, tokenizer, draft, max_shard_size=settings.max_shard_size)
            write_card(folder, draft / CARD, what, picture=settings.picture)
            source = {"caldpo": __version__, "run": target.name, "step": weights.step}
            write_json(draft / RECORD, source | {"merged": settings.merge, "dtype": settings.dtype})
    except OSError as error:
        raise CaldpoError(f"cannot be written: {error.strerror or error}", key="to", value=place) from error
    _print_export(place, what)
    if settings.push_to is not None:
        message = f"Policy of step {what.step}, exported by caldpo {__version__}"
        print(f"uploaded: {upload(settings.push_to, place, message)}")


def tokenizer_of(target: Target, source: Any) -> PreTrainedTokenizerBase:
    """Load the one that the run saved beside its policy, else the one that it was made with."""
    assert target.run is not None
    saved = target.run / "policy"
    trusted = bool(target.of_run("model.trust_remote_code", False))
    if (saved / "tokenizer_config.json").is_file():
        return load_tokenizer(str(saved), key="run", trust_remote_code=trusted)
    tokenizer: PreTrainedTokenizerBase = source.load_tokenizer()
    return tokenizer


def _print_export(place: Path, what: Exported) -> None:
    size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    print(f"{'adapter' if what.adapter else 'policy'} of step {what.step}: {size / 2**20:,.1f} MiB in {place}")
    if not what.adapter:
        print(f"serve it with vLLM, if you have it (never run here): vllm serve {shlex.quote(str(place))}")
