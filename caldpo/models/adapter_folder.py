"""Load a saved adapter: a LoRA or DoRA of the kind that this project trains, and nothing else in PEFT's format.

PEFT's configuration may name a Python module to import and kinds of adapters that compile code, and PEFT opens a pickle
where the weights are not safetensors. A folder may come from others, so all of that is refused.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from caldpo.config.extras import require_package
from caldpo.errors import CaldpoError, one_line
from caldpo.models.adapted_policy import REFERENCE
from caldpo.models.hub_files import no_safetensors_error
from caldpo.models.model_source import ModelSource, WrappedSource
from caldpo.models.weight_files import read_header
from caldpo.utils.digests import file_digest
from caldpo.utils.notes import print_notes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# settings that an adapter of this project sets, and names that nothing is done with
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
    """Put the adapter in ``folder`` on ``base``.

    Args:
        base: the model that the adapter was trained on.
        folder: written by ``save_pretrained`` of a policy with an adapter.
        dropout: on the update's input; None: the saved one.
        expected: settings that the adapter has to have, by their keys.
        reference: folder of a second adapter, kept frozen under the name :data:`REFERENCE`.

    Raises:
        CaldpoError: PEFT is not installed, or a folder holds anything but such an adapter of this base.
    """
    require_package("peft", "adapter", "lora")
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict

    folders = {"default": folder} | ({} if reference is None else {REFERENCE: reference})
    stored: dict[Path, dict[str, tuple[int, ...]]] = {}
    for source in folders.values():
        settings = _plain_settings(source / CONFIG, LoraConfig().to_dict())
        _require_expected(settings, expected or {}, source)
        if not (source / WEIGHTS).is_file():
            raise no_safetensors_error(str(source), "adapter", f"there is no {WEIGHTS}")
        header = read_header(source / WEIGHTS, key="adapter", value=source)
        stored[source] = {name: tensor.shape for name, tensor in header.items()}
        _note_other_base(settings, base, source)
    config = LoraConfig.from_pretrained(str(folder))
    if dropout is not None:
        config.lora_dropout = dropout
    try:
        with warnings.catch_warnings():  # about what is refused below, and about settings of parameters
            refused = "Found missing adapter keys|Some weights of|The following .* keys did not match"
            warnings.filterwarnings("ignore", refused)
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")  # PEFT asks by a name of transformers 4
            adapted: Any = PeftModel.from_pretrained(
                base, str(folder), is_trainable=trained, config=config, ignore_mismatched_sizes=True
            )
            if reference is not None:
                adapted.load_adapter(str(reference), REFERENCE, is_trainable=False, ignore_mismatched_sizes=True)
                adapted.set_adapter("default")
    except (RuntimeError, ValueError) as error:
        raise _mismatch(base, folder, one_line(error)) from error
    for name, source in folders.items():
        state = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
        # PEFT initialises what is missing or of another shape, and ignores what it does not know
        needed = {weight: tuple(value.shape) for weight, value in state.items()}
        if differing := sorted(stored[source].items() ^ needed.items()):
            weight = differing[0][0]
            has, needs = (f"of shape {list(s[weight])}" if weight in s else "missing" for s in (stored[source], needed))
            raise _mismatch(base, source, f"{weight} is {has} in {WEIGHTS}, and {needs} in the model")
    return adapted


def _note_other_base(settings: Mapping[str, Any], base: PreTrainedModel, folder: Path) -> None:
    """Print that an adapter names another base: any of its sizes takes it, and a base may have moved since."""
    name, path = settings.get("base_model_name_or_path"), base.config.name_or_path
    if isinstance(name, str) and name and path and Path(name).name != Path(path).name:
        print_notes([f"the adapter in {folder} was trained on {name} by its {CONFIG}, and is put on {path}"])


def _mismatch(base: PreTrainedModel, folder: Path, reason: str) -> CaldpoError:
    return CaldpoError(
        f"is not an adapter of this {type(base).__name__}: {reason}",
        key=str(folder),
        remedy="name the base that it was trained on by model.path, and a complete adapter",
    )


def _is_about_fused_experts(key: str, value: Any) -> bool:
    """Whether a setting is what PEFT itself writes for experts that transformers keeps as one tensor (Mixtral).

    Only names and ranks: PEFT takes the keys of its patterns for regular expressions, so that only its own form is
    accepted, ``.*\\.gate_up_proj``.
    """
    if key == "target_parameters":
        return isinstance(value, list) and all(isinstance(name, str) and _NAME.fullmatch(name) for name in value)
    if key not in ("rank_pattern", "alpha_pattern") or not isinstance(value, dict):
        return False
    return all(_NAME.fullmatch(name.removeprefix(".*\\.")) and type(rank) is int for name, rank in value.items())


def _require_expected(settings: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    kind = "dora" if settings.get("use_dora") else "lora"
    stored = {"adapter.rank": settings.get("r"), "adapter.alpha": settings.get("lora_alpha"), "adapter": kind}
    for key, value in expected.items():
        if stored[key] != value:
            raise CaldpoError(
                f"differs from the adapter in {folder}, which the policy continues",
                key=key,
                value=value,
                remedy=f"set {key}={stored[key]}, or adapter.init_mode=merged to start a new one",
            )


def _plain_settings(file: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    """Read the settings of an adapter, and refuse any that this project does not train with."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CaldpoError(f"cannot be read: {str(error).splitlines()[0]}", key=str(file)) from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        raise CaldpoError("is not a LoRA, the only kind of adapter that is supported", key=str(file))
    plain = json.loads(json.dumps(defaults, default=str))
    for key, value in settings.items():
        unset = value in (None, False, {}, []) or (key in plain and value == plain[key])
        if key not in _OWN | _NAMES and not unset and not _is_about_fused_experts(key, value):
            raise CaldpoError(
                "is not a setting of the adapters that are supported",
                key=f"{file}: {key}",
                value=value,
                remedy="remove it, or merge the adapter into its base with the program that wrote it",
            )
    return settings


class MergedAdapter(WrappedSource):
    """Merges an earlier adapter (usually of an SFT run) into its base: the start of policy and reference alike."""

    def __init__(self, source: ModelSource, folder: str) -> None:
        super().__init__(source)
        self.folder = folder

    def load_policy(self) -> PreTrainedModel:
        """Load the base and add the adapter's updates to its weights, in its own dtype."""
        adapted: Any = load_adapter(self.source.load_policy(), Path(self.folder))
        model: PreTrainedModel = adapted.merge_and_unload()
        return model.requires_grad_(True)  # PEFT has frozen the base

    def skeleton(self) -> PreTrainedModel:
        return self.source.skeleton()  # merging changes values, no shapes

    def identity(self) -> str:
        return f"{self.source.identity()} with {named_with_digest(self.folder)} merged into it"


def named_with_digest(folder: str) -> str:
    """Name an adapter's folder with the first digits of its weights' SHA-256, since it may be overwritten."""
    file = Path(folder) / WEIGHTS
    return f"{folder} ({file_digest(file)[:12]})" if file.is_file() else folder


def require_adapter_folder(folder: str) -> None:
    """Refuse an ``adapter.init_from`` without an adapter, before weights load."""
    if not (Path(folder) / CONFIG).is_file():
        raise CaldpoError(
            f"holds no adapter: there is no {CONFIG}",
            key="adapter.init_from",
            value=folder,
            remedy="name the policy/ of a run with adapter=lora or dora, and its base by model.path",
        )
