"""Read the files of a model on the hub or in a folder, other than weights: commit, code, safety. Executes nothing.

Weights are loaded from safetensors only, since every other format of a published model is a pickle. Python code that
comes with a model runs only with ``trust_remote_code``, and is then announced.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from caldpo.errors import CaldpoError
from caldpo.models.weight_files import INDEX, StoredTensor, check_weight_files
from caldpo.utils.file_names import TOKENIZER_FILES
from caldpo.utils.hub_access import cache_only, require_access
from caldpo.utils.stream_console import Console

_MAY_NAME_CODE = ("config.json", "tokenizer_config.json")  # in auto_map
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


def commit_of(path: str, revision: str | None) -> str | None:
    """Look up the commit that a hub id resolves to now; None for a folder, or where the hub does not tell."""
    if Path(path).is_dir():
        return None
    file = _file(path, "config.json", revision)
    match = re.search(r"/snapshots/([0-9a-f]{40})/", file.as_posix()) if file else None
    return match[1] if match else revision


def code_files(path: str, revision: str | None) -> list[str]:
    """List the Python files that a model or tokenizer loads, those of other repositories with their id."""
    files: set[str] = set()
    for name in _MAY_NAME_CODE:
        for reference in _texts(_content(path, name, revision).get("auto_map")):
            repository, _, class_path = reference.rpartition("--")
            file = f"{class_path.partition('.')[0]}.py"
            files.add(f"{repository}: {file}" if repository else file)
    return sorted(files)


@functools.cache  # once a process, however many of its parts load the model
def announce_code(path: str, revision: str | None) -> None:
    """Print which code is about to run because of ``trust_remote_code``."""
    files = code_files(path, revision)
    subject = f"runs Python code that comes with {path}" if files else f"{path} brings no Python code of its own"
    commit = commit_of(path, revision)
    at = f" at {commit}" if commit else ""
    listed = f": {', '.join(files)}" if files else ""
    Console(stderr=True).print(
        f"trust_remote_code: {subject}{at}{listed}", style="yellow", highlight=False, markup=False, soft_wrap=True
    )


def has_tokenizer(path: str, revision: str | None = None) -> bool:
    """Tell whether a tokenizer lies with the weights."""
    return any(_file(path, name, revision) is not None for name in TOKENIZER_FILES)


def require_safe(path: str, *, key: str, revision: str | None = None, trusted: bool = False) -> None:
    """Refuse a model whose weights are pickles or damaged, or whose configuration loads another repository's code.

    The latter may run where the model's code is ``trusted``. One that is neither cached nor on the hub is refused, too.
    """
    require_access(path, revision, key=key)
    if not trusted:
        for place, value in _implementations(_content(path, "config.json", revision)):
            if "/" in value:  # transformers loads such a name as a kernel from the hub
                raise CaldpoError(
                    f"its config.json loads code of another repository ({place}: {value})",
                    key=key,
                    value=path,
                    remedy="take that line out of its config.json, or set model.trust_remote_code=true"
                    " if you know that code",
                )
    if _file(path, "adapter_config.json", revision) is not None:  # transformers would load it, whatever it contains
        raise CaldpoError(
            "is an adapter, not a model",
            key=key,
            value=path,
            remedy="name its base by model.path, and the adapter by adapter=lora adapter.init_from=FOLDER",
        )
    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        if pickles:
            reason = f"its weights are a pickle ({pickles[0]}), which can run code when opened"
            raise no_safetensors_error(path, key, reason)
    stored_tensors(path, key=key, revision=revision)


def stored_tensors(path: str, *, key: str, revision: str | None = None) -> dict[str, StoredTensor]:
    """Read name, dtype and shape of the model's tensors, as far as its safetensors are on this machine.

    For a model of the hub the index is downloaded. Damaged files are refused, and an index that names others.
    """
    if Path(path).is_dir():
        return check_weight_files(Path(path), key=key)
    index = _file(path, INDEX, revision)
    cached = index or _file(path, "config.json", revision)
    return {} if cached is None else check_weight_files(cached.parent, key=key, index=index)


def no_safetensors_error(path: str, key: str, reason: str) -> CaldpoError:
    """Explain that a model has no safetensors, and how to convert it."""
    return CaldpoError(
        f"{reason}; weights are loaded from safetensors only",
        key=key,
        value=path,
        remedy="convert it once, if you trust where it comes from: in Python, AutoModelForCausalLM"
        f".from_pretrained({path!r}).save_pretrained('NEW_FOLDER') of transformers, its tokenizer likewise",
    )


def _implementations(node: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield key and value of each implementation that a configuration chooses, in itself or a part of it."""
    if not isinstance(node, dict):
        return
    for name, value in node.items():
        below = f"{place}.{name}" if place else str(name)
        if str(name).endswith(("attn_implementation", "experts_implementation")):
            yield from ((below, text) for text in _texts(value))
        else:
            yield from _implementations(value, below)


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for item in node.values() if isinstance(node, dict) else node:
            yield from _texts(item)


def _content(path: str, name: str, revision: str | None) -> dict[str, Any]:
    """Read a JSON file of the model; empty where it cannot be read, which loading the model reports."""
    file = _file(path, name, revision)
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _file(path: str, name: str, revision: str | None) -> Path | None:
    try:
        cached = cached_file(path, name, revision=revision or "main", local_files_only=cache_only(path, revision))
    except (OSError, ValueError):
        return None
    return Path(cached) if cached else None
