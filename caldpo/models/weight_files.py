"""Check the weight files of a model or an adapter from their headers, before anything is loaded.

A safetensors file is eight bytes with the length of a JSON header, the header (dtype, shape and offsets of each
tensor), and the tensors without a gap. Several files have an index, which names the file of each tensor.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open

from caldpo.errors import CaldpoError, one_line

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_LFS = b"version https://git-lfs"
_MAX_HEADER = 100_000_000  # bytes; the library reads no longer one
_FLOATS = ("F64", "F32", "BF16", "F16")
_EXPERT = re.compile(r"(.*expert\w*\.)(\d+)(\..*)")
_RECOPY = "copy or download the file again, completely"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file; its dtype by safetensors' name, such as ``BF16``."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def check_weight_files(folder: Path, *, key: str, index: Path | None = None) -> dict[str, StoredTensor]:
    """Read the headers of a model's safetensors in a folder: each tensor by its name, none where there are no files.

    Args:
        folder: of the files; with ``index``, missing ones are skipped, as in a half-filled cache of the hub.
        key: configuration key that names the model.
        index: of a model of the hub, in its cache; None: that of ``folder``, if it has one.

    Raises:
        CaldpoError: naming ``key`` and the file: it is truncated, empty, damaged or of another format; or the index
            names a file that is not safetensors, outside of the folder or missing, or does not match its files.
    """
    if index is None and (folder / SINGLE).is_file():  # which transformers takes before an index
        return read_header(folder / SINGLE, key=key, value=folder)
    index_file = folder / INDEX if index is None else index
    if not index_file.is_file():
        return {}
    weight_map = _read_index(index_file, key, folder)
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(weight_map.values())):
        file = folder / name
        if not file.exists():
            if index is not None:
                continue
            raise _error(key, folder, f"{INDEX} names {name}, which does not exist", "copy or download that file, too")
        for tensor, stored in read_header(file, key=key, value=folder).items():
            if tensor in tensors:
                where = f"{tensors[tensor].file} and in {name}"
                raise _error(key, folder, f"{tensor} is in {where}", "remove the stale file")
            tensors[tensor] = stored
        missing = sorted(tensor for tensor, place in weight_map.items() if place == name and tensor not in tensors)
        if missing:
            message = f"{INDEX} lists {missing[0]} in {name}, which lacks it{_more(missing)}"
            raise _error(key, folder, message, "take index and files from the same save")
    return tensors


def read_header(file: Path, *, key: str, value: object) -> dict[str, StoredTensor]:
    """Read the header of a safetensors file: each tensor by its name."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # not a mapping
            return {n: StoredTensor(file.name, str(s.get_dtype()), tuple(s.get_shape())) for n, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _error(key, value, f"{file.name} {_fault(file, error)}", _RECOPY) from error


def require_shapes(
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    files: Mapping[str, StoredTensor],
    *,
    key: str,
    value: str,
) -> None:
    """Refuse tensors whose shapes differ from the model's, naming the first with both shapes.

    Args:
        mismatched: shape in the files and in the model, by the tensor's name in the model.
        files: tensors by their names in the files, which may be others.
        key, value: of the model.
    """
    for name, (stored, wanted) in sorted(mismatched.items()):
        where = f" in {files[name].file}" if name in files else ""
        raise _error(
            key,
            value,
            f"{name}{where} has the shape {list(stored)}, and the model of its config.json has"
            f" {list(wanted)}{_more(list(mismatched))}",
            "take config.json and weights from the same save",
        )


def require_all_weights(missing: Collection[str], *, key: str, value: str) -> None:
    """Refuse a model with weights that are in no file, which transformers initialises at random."""
    if missing:
        remedy = "take a complete checkpoint, of the architecture that its config.json names"
        raise _error(key, value, f"its files lack {min(missing)}{_more(missing)}", remedy)


def require_equal_experts(files: Mapping[str, StoredTensor], *, key: str, value: str) -> None:
    """Refuse experts of a layer that differ in shape or lack a tensor: they are stacked into one.

    To be called where a model does not load, as layers may well differ from each other.
    """
    groups: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    experts: Counter[str] = Counter()
    for match in filter(None, map(_EXPERT.fullmatch, files)):
        groups[match[1], match[3]][int(match[2])] = match[0]
        experts[match[1]] = max(experts[match[1]], 1 + int(match[2]))
    for (before, after), numbered in groups.items():
        missing = [f"{before}{i}{after}" for i in range(experts[before]) if i not in numbered]
        require_all_weights(missing, key=key, value=value)
        usual = Counter(files[name].shape for name in numbered.values()).most_common(1)[0][0]
        odd = {name: (files[name].shape, usual) for name in numbered.values() if files[name].shape != usual}
        require_shapes(odd, files, key=key, value=value)


def require_float_weights(wanted: Iterable[str], files: Mapping[str, StoredTensor], *, key: str, value: str) -> None:
    """Refuse weights stored as integers, or as floats of 8 bits and less, in a model that is not quantised.

    They are rounded, and their scales are unknown. ``wanted`` names the model's weights.
    """
    for name in wanted:
        if name in files and files[name].dtype not in _FLOATS:
            raise _error(
                key,
                value,
                f"{name} in {files[name].file} is stored as {files[name].dtype}, and config.json has no"
                " quantization_config that tells how to read it",
                f"take a checkpoint whose weights are {', '.join(_FLOATS)}",
            )


class _Index(BaseModel):
    weight_map: Annotated[dict[str, str], Field(min_length=1)]
    metadata: dict[str, Any]  # which transformers reads


def _read_index(file: Path, key: str, folder: Path) -> dict[str, str]:
    remedy = "take the index and its files from the same save of safetensors"
    try:
        weight_map = _Index.model_validate_json(file.read_bytes(), strict=True).weight_map
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _error(key, folder, f"{INDEX}: {place + ': ' if place else ''}{first['msg']}", remedy) from error
    except OSError as error:
        raise _error(key, folder, f"{INDEX} cannot be read: {error}", remedy) from error
    for tensor, name in weight_map.items():
        if PurePosixPath(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise _error(key, folder, f"{INDEX} names a file outside of the folder ({tensor}: {name})", remedy)
        if not name.endswith(".safetensors"):
            message = f"{INDEX} names a file that is not safetensors, which can run code ({tensor}: {name})"
            raise _error(key, folder, message, remedy)
    return weight_map


def _fault(file: Path, error: Exception) -> str:
    """Describe the fault of a file such that a user can act on it; else quote the library."""
    if not file.is_file():
        return "is not a file"
    size = file.stat().st_size
    if size == 0:
        return "is empty"
    with file.open("rb") as opened:
        first = opened.read(len(_LFS))
        if first == _LFS:
            return "is a pointer of Git LFS, without the weights (git lfs pull fetches them)"
        length = int.from_bytes(first[:8], "little")
        opened.seek(8)
        raw = opened.read(min(length, _MAX_HEADER))
    try:
        ends = [int(tensor["data_offsets"][1]) for name, tensor in json.loads(raw).items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        ends = []
    listed = 8 + length + max(ends, default=0)
    if ends and listed > size:
        return f"is truncated: its header lists {listed:,} bytes, and the file has {size:,}"
    return f"is damaged or no safetensors file, of {size:,} bytes: {one_line(error)}"


def _more(names: Collection[str]) -> str:
    return f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""


def _error(key: str, value: object, message: str, remedy: str) -> CaldpoError:
    return CaldpoError(message, key=key, value=value, remedy=remedy)
