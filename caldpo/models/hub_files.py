"""What a model on the hub or in a folder brings beside weights, read from its files: nothing of it is executed here.

Weights are taken from safetensors alone, since every other format of a published model is a pickle. Python code that
comes with a model runs only where ``trust_remote_code`` says so, and then it is announced.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils import cached_file

from caldpo.errors import CaldpoError
from caldpo.models.weight_files import INDEX, Stored, check_weight_files

_WITH_CODE = ("config.json", "tokenizer_config.json")  # files that may name code in auto_map
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


def commit_of(path: str, revision: str | None) -> str | None:
    """The commit that a hub id stands for now; None for a folder, or where the hub does not tell."""
    if Path(path).is_dir():
        return None
    file = _file(path, "config.json", revision)
    found = re.search(r"/snapshots/([0-9a-f]{40})/", file.as_posix()) if file else None
    return found[1] if found else revision


def code_of(path: str, revision: str | None) -> list[str]:
    """The Python files that a model or tokenizer names for itself, those of other repositories with their id."""
    named: set[str] = set()
    for name in _WITH_CODE:
        for reference in _texts(_content(path, name, revision).get("auto_map")):
            repository, _, place = reference.rpartition("--")
            file = f"{place.partition('.')[0]}.py"
            named.add(f"{repository}: {file}" if repository else file)
    return sorted(named)


@functools.cache  # once a process, however many of its parts load the model
def announce_code(path: str, revision: str | None) -> None:
    """Tell the terminal which code is about to run because of ``trust_remote_code``."""
    files = code_of(path, revision)
    what = f"runs Python code that comes with {path}" if files else f"{path} brings no Python code of its own"
    commit = commit_of(path, revision)
    at = f" at {commit}" if commit else ""
    listed = f": {', '.join(files)}" if files else ""
    Console(stderr=True).print(
        f"trust_remote_code: {what}{at}{listed}", style="yellow", highlight=False, markup=False, soft_wrap=True
    )


def with_code(identity: str, path: str, revision: str | None) -> str:
    """``identity`` of a trusted model, and the code that ran with it."""
    files = code_of(path, revision)
    return f"{identity} (with Python code of its own: {', '.join(files)})" if files else identity


def require_safe(path: str, *, key: str, revision: str | None = None, trusted: bool = False) -> None:
    """Refuse a model whose weights are pickles or damaged, or whose configuration has another repository's code loaded.

    Args:
        path: hub id or folder.
        key: configuration key of ``path``.
        revision: of a hub id.
        trusted: whether code of its own may run.

    Raises:
        CaldpoError: naming ``key``.
    """
    if not trusted:
        for place, value in _attention(_content(path, "config.json", revision)):
            if isinstance(value, str) and "/" in value:  # transformers has such a name loaded as a kernel from the hub
                raise CaldpoError(
                    f"its config.json has code of another repository run ({place}: {value})",
                    key=key,
                    value=path,
                    remedy="take that line out of its config.json, or set model.trust_remote_code=true"
                    " if you know that code",
                )
    if _file(path, "adapter_config.json", revision) is not None:  # transformers would load it, whatever it says
        raise CaldpoError(
            "is an adapter, and no model",
            key=key,
            value=path,
            remedy="name its base by model.path, and the adapter by adapter=lora adapter.init_from=FOLDER",
        )
    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        if pickles:
            raise only_pickles(path, key, f"its weights are a pickle ({pickles[0]}), which can run code when opened")
    stored_tensors(path, key=key, revision=revision)


def stored_tensors(path: str, *, key: str, revision: str | None = None) -> dict[str, Stored]:
    """Every tensor of the model's safetensors by its name, as far as the files are on this machine.

    Of a model of the hub the index is fetched, which may not name anything but safetensors.

    Raises:
        CaldpoError: naming ``key``: a file or the index is damaged, or not what it should be.
    """
    if Path(path).is_dir():
        return check_weight_files(Path(path), key=key)
    index = _file(path, INDEX, revision)
    known = index or _file(path, "config.json", revision)
    return {} if known is None else check_weight_files(known.parent, key=key, index=index)


def only_pickles(path: str, key: str, why: str) -> CaldpoError:
    """What to say of a model without safetensors."""
    return CaldpoError(
        f"{why}; weights are loaded from safetensors alone",
        key=key,
        value=path,
        remedy="convert it once, if you trust where it comes from: in Python, AutoModelForCausalLM"
        f".from_pretrained({path!r}).save_pretrained('NEW_FOLDER') of transformers, its tokenizer likewise",
    )


def _attention(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that chooses an implementation, in the configuration itself or a part of it."""
    if not isinstance(node, dict):
        return
    for name, value in node.items():
        below = f"{place}.{name}" if place else str(name)
        if str(name).endswith(("attn_implementation", "experts_implementation")):
            yield from ((below, text) for text in _texts(value))
        else:
            yield from _attention(value, below)


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for item in node.values() if isinstance(node, dict) else node:
            yield from _texts(item)


def _content(path: str, name: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of the model; empty where it cannot be had, which whoever loads the model has to report."""
    file = _file(path, name, revision)
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _file(path: str, name: str, revision: str | None) -> Path | None:
    try:
        found = cached_file(path, name, revision=revision or "main")
    except (OSError, ValueError):
        return None
    return Path(found) if found else None
