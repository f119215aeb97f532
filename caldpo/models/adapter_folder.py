"""A saved adapter on its base: the LoRA that this project trains, and nothing else that PEFT's format can say.

PEFT's configuration may name a Python module to import and kinds of adapters that compile code, and where the weights
are no safetensors PEFT opens a pickle. A folder may come from other hands, so all of that is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from caldpo.config.explain import install
from caldpo.errors import CaldpoError
from caldpo.models.published import only_pickles

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# what a LoRA of this project has of its own, and names that nothing is done with
_OWN = {"r", "lora_alpha", "lora_dropout", "target_modules", "task_type", "fan_in_fan_out", "peft_type"}
_NAMES = {"base_model_name_or_path", "revision", "peft_version", "inference_mode"}


def load_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """``base`` under the adapter in ``folder``.

    Args:
        base: the model that the adapter was trained on.
        folder: written by ``save_pretrained`` of a policy with ``adapter=lora``.

    Raises:
        CaldpoError: PEFT is not installed, or the folder holds anything but such an adapter.
    """
    try:
        from peft import LoraConfig, PeftModel
    except ImportError:
        raise CaldpoError("not installed", key="adapter", value="lora", remedy=install("adapter", "lora")) from None
    _require_plain(folder / CONFIG, LoraConfig().to_dict())
    if not (folder / WEIGHTS).is_file():
        raise only_pickles(str(folder), "adapter", f"there is no {WEIGHTS}")
    adapted: Any = PeftModel.from_pretrained(base, str(folder))
    return adapted


def _require_plain(file: Path, defaults: dict[str, Any]) -> None:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CaldpoError(f"cannot be read: {str(error).splitlines()[0]}", key=str(file)) from error
    if not isinstance(said, dict) or said.get("peft_type") != "LORA":
        raise CaldpoError("is no LoRA, the only adapter that is trained here", key=str(file))
    plain = json.loads(json.dumps(defaults, default=str))
    for key, value in said.items():
        off = value in (None, False, {}, []) or (key in plain and value == plain[key])
        if key not in _OWN | _NAMES and not off:
            raise CaldpoError(
                "no adapter that is trained here has this setting",
                key=f"{file}: {key}",
                value=value,
                remedy="take it out, or merge the adapter into its base with the program that wrote it",
            )
