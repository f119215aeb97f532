"""A saved adapter on its base: the LoRA or DoRA that this project trains, and nothing else that PEFT's format can say.

PEFT's configuration may name a Python module to import and kinds of adapters that compile code, and where the weights
are no safetensors PEFT opens a pickle. A folder may come from other hands, so all of that is refused.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from caldpo.config.hydra_errors import install
from caldpo.errors import CaldpoError
from caldpo.models.hub_files import only_pickles
from caldpo.models.weight_files import read_header
from caldpo.utils.notes import print_notes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
REFERENCE = "reference"  # name, in PEFT's model, of the frozen adapter under which a policy is its reference
# what a LoRA of this project has of its own, and names that nothing is done with
_OWN = {"r", "lora_alpha", "lora_dropout", "target_modules", "task_type", "fan_in_fan_out", "peft_type", "use_dora"}
_NAME = re.compile(r"[A-Za-z0-9_.]+")
_NAMES = {"base_model_name_or_path", "revision", "peft_version", "inference_mode"}


def load_adapter(
    base: PreTrainedModel,
    folder: Path,
    *,
    trained: bool = False,
    dropout: float | None = None,
    expected: Mapping[str, Any] | None = None,
    reference: Path | None = None,
) -> PreTrainedModel:
    """``base`` under the adapter in ``folder``.

    Args:
        base: the model that the adapter was trained on.
        folder: written by ``save_pretrained`` of a policy with an adapter.
        trained: whether the adapter's weights are going to be trained.
        dropout: on the update's input; None: the saved one.
        expected: settings that the adapter has to have, by PEFT's names.
        reference: folder of a second adapter, kept frozen under the name :data:`REFERENCE`.

    Raises:
        CaldpoError: PEFT is not installed, or a folder holds anything but such an adapter of this base.
    """
    try:
        from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    except ImportError:
        raise CaldpoError("not installed", key="adapter", value="lora", remedy=install("adapter", "lora")) from None
    stored: dict[Path, set[str]] = {}
    for place in (folder, *([] if reference is None else [reference])):
        said = _require_plain(place / CONFIG, LoraConfig().to_dict())
        _require_expected(said, expected or {}, place)
        if not (place / WEIGHTS).is_file():
            raise only_pickles(str(place), "adapter", f"there is no {WEIGHTS}")
        stored[place] = set(read_header(place / WEIGHTS, key="adapter", value=place))
        _note_other_base(said, base, place)
    config = LoraConfig.from_pretrained(str(folder))
    if dropout is not None:
        config.lora_dropout = dropout
    try:
        with warnings.catch_warnings():  # of what is refused below, and of settings that are of parameters
            warnings.filterwarnings("ignore", "Found missing adapter keys|The following .* keys did not match")
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")  # PEFT asks by a name of transformers 4
            adapted: Any = PeftModel.from_pretrained(base, str(folder), is_trainable=trained, config=config)
            if reference is not None:
                adapted.load_adapter(str(reference), REFERENCE, is_trainable=False)
                adapted.set_adapter("default")
    except (RuntimeError, ValueError) as error:
        raise _of_another(base, folder, _first_size(error) or str(error).strip().splitlines()[0]) from error
    for place, name in ((folder, "default"), *([] if reference is None else [(reference, REFERENCE)])):
        wanted = set(get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False))
        if stored[place] != wanted:  # PEFT leaves what is missing as it was drawn, and what is too much out
            first = sorted(stored[place] ^ wanted)[0]
            why = f"{WEIGHTS} lacks" if first in wanted else f"it has no place for what is in {WEIGHTS}:"
            raise _of_another(base, place, f"{why} {first}")
    return adapted


def _note_other_base(said: Mapping[str, Any], base: PreTrainedModel, folder: Path) -> None:
    """Say that an adapter names another base: what has its sizes takes it, and a base may lie elsewhere by now."""
    name, here = said.get("base_model_name_or_path"), base.config.name_or_path
    if isinstance(name, str) and name and here and Path(name).name != Path(here).name:
        print_notes([f"the adapter in {folder} was trained on {name} by its {CONFIG}, and is put on {here}"])


_SIZES = re.compile(r"size mismatch for (\S+): [^\n]*?Size\((\[[\d, ]*\])\)[^\n]*?Size\((\[[\d, ]*\])\)")


def _of_another(base: PreTrainedModel, folder: Path, why: str) -> CaldpoError:
    return CaldpoError(
        f"is no adapter of this {type(base).__name__}: {why}",
        key=str(folder),
        remedy="name the base that it was trained on by model.path, and a whole adapter",
    )


def _first_size(error: Exception) -> str:
    """Tensor and both shapes, where PyTorch says them; the list that they stand in has a title of its own."""
    found = _SIZES.search(str(error))
    return "" if found is None else f"{found[1]} has the shape {found[2]} in {WEIGHTS}, and {found[3]} in the model"


def _of_fused_experts(key: str, value: Any) -> bool:
    """Whether it is what PEFT itself notes of experts that transformers keeps as one tensor (Mixtral, Qwen2-MoE).

    Names alone and ranks: PEFT takes the keys of its patterns for regular expressions, so that only its own form is
    let through, ``.*\\.gate_up_proj``.
    """
    if key == "target_parameters":
        return isinstance(value, list) and all(isinstance(name, str) and _NAME.fullmatch(name) for name in value)
    if key not in ("rank_pattern", "alpha_pattern") or not isinstance(value, dict):
        return False
    return all(_NAME.fullmatch(name.removeprefix(".*\\.")) and type(rank) is int for name, rank in value.items())


def _require_expected(said: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    keys = {"r": "adapter.rank", "lora_alpha": "adapter.alpha", "use_dora": "adapter"}
    for name, value in expected.items():
        found = said.get(name) or False if isinstance(value, bool) else said.get(name)
        if found != value:
            wanted = ("dora" if found else "lora") if isinstance(value, bool) else found
            raise CaldpoError(
                f"another than that of the adapter in {folder}, which the policy goes on with",
                key=keys[name],
                value=("dora" if value else "lora") if isinstance(value, bool) else value,
                remedy=f"set {keys[name]}={wanted}, or adapter.init_mode=merged to begin a new one",
            )


def _require_plain(file: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CaldpoError(f"cannot be read: {str(error).splitlines()[0]}", key=str(file)) from error
    if not isinstance(said, dict) or said.get("peft_type") != "LORA":
        raise CaldpoError("is no LoRA, the only adapter that is trained here", key=str(file))
    plain = json.loads(json.dumps(defaults, default=str))
    for key, value in said.items():
        off = value in (None, False, {}, []) or (key in plain and value == plain[key])
        if key not in _OWN | _NAMES and not off and not _of_fused_experts(key, value):
            raise CaldpoError(
                "no adapter that is trained here has this setting",
                key=f"{file}: {key}",
                value=value,
                remedy="take it out, or merge the adapter into its base with the program that wrote it",
            )
    return said
