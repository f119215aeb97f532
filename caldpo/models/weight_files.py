"""Whether the weight files of a model or an adapter can be read: from their headers, before anything is loaded.

A safetensors file is eight bytes that tell the length of a JSON header, the header (dtype, shape and place of each
tensor), and the tensors without a gap. Several files have an index, which names the file of each tensor.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from caldpo.errors import CaldpoError, one_line

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_LFS = b"version https://git-lfs"
_FLOATS = ("F64", "F32", "BF16", "F16")
_EXPERT = re.compile(r"(.*expert\w*\.)(\d+)(\..*)")
_AGAIN = "copy or download the file again, whole"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file.

    Args:
        file: name of the file.
        dtype: by safetensors' name, such as ``BF16``.
        shape: of it.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]


def check_weight_files(folder: Path, *, key: str, index: Path | None = None) -> dict[str, Stored]:
    """Read the headers of a model's safetensors in a folder, and its index where it has one.

    Args:
        folder: files that are not there yet, as in a half-filled cache of the hub, are not looked at if ``index`` is
            given.
        key: configuration key that names the model.
        index: of a model of the hub, in its cache; None looks in ``folder``.

    Returns:
        Each tensor by its name in the files; empty where there is none of these files.

    Raises:
        CaldpoError: naming ``key`` and the file: it is cut off, empty, damaged or of another kind, the index names a
            file that is no safetensors, lies elsewhere or is not there, or it does not agree with its files.
    """
    if index is None and (folder / SINGLE).is_file():  # which transformers takes before an index
        return read_header(folder / SINGLE, key=key, value=folder)
    listed = folder / INDEX if index is None else index
    if not listed.is_file():
        return {}
    places = _read_index(listed, key, folder)
    found: dict[str, Stored] = {}
    for name in sorted(set(places.values())):
        file = folder / name
        if not file.exists():
            if index is not None:
                continue
            raise _bad(key, folder, f"{INDEX} names {name}, which is not there", "copy or download that file, too")
        for tensor, stored in read_header(file, key=key, value=folder).items():
            if tensor in found:
                raise _bad(key, folder, f"{tensor} is in {found[tensor].file} and in {name}", "remove the stale file")
            found[tensor] = stored
        lacking = sorted(tensor for tensor, place in places.items() if place == name and tensor not in found)
        if lacking:
            why = f"{INDEX} says that {lacking[0]} is in {name}, and it is not{_more(lacking)}"
            raise _bad(key, folder, why, "take index and files from the same save")
    return found


def read_header(file: Path, *, key: str, value: object) -> dict[str, Stored]:
    """Every tensor of a safetensors file by its name.

    Raises:
        CaldpoError: naming ``key`` and the file, and what is wrong with it.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
            return {n: Stored(file.name, str(s.get_dtype()), tuple(s.get_shape())) for n, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _bad(key, value, f"{file.name} {_what_is_wrong(file, error)}", _AGAIN) from error


def require_shapes(
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    files: Mapping[str, Stored],
    *,
    key: str,
    value: str,
) -> None:
    """Refuse tensors whose shapes are not the model's.

    Args:
        mismatched: shape in the files and in the model, by the tensor's name in the model.
        files: tensors by their names in the files, which may be others.
        key, value: of the model.

    Raises:
        CaldpoError: naming the first of them with both shapes.
    """
    for name, (stored, wanted) in sorted(mismatched.items()):
        where = f" in {files[name].file}" if name in files else ""
        raise _bad(
            key,
            value,
            f"{name}{where} has the shape {list(stored)}, and the model of its config.json has"
            f" {list(wanted)}{_more(list(mismatched))}",
            "take config.json and weights from the same save",
        )


def require_even(files: Mapping[str, Stored], *, key: str, value: str) -> None:
    """Refuse experts of a layer that have different shapes, or not all of their tensors: they are made into one.

    To be asked where a model does not load, as layers may well differ among each other.

    Raises:
        CaldpoError: naming the tensor.
    """
    groups: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    experts: Counter[str] = Counter()
    for found in filter(None, map(_EXPERT.fullmatch, files)):
        groups[found[1], found[3]][int(found[2])] = found[0]
        experts[found[1]] = max(experts[found[1]], 1 + int(found[2]))
    for (before, after), numbered in groups.items():
        lacking = [f"{before}{i}{after}" for i in range(experts[before]) if i not in numbered]
        if lacking:
            remedy = "take a checkpoint that is whole, and of the architecture that its config.json names"
            raise _bad(key, value, f"its files lack {lacking[0]}{_more(lacking)}", remedy)
        usual = Counter(files[name].shape for name in numbered.values()).most_common(1)[0][0]
        odd = {name: (files[name].shape, usual) for name in numbered.values() if files[name].shape != usual}
        require_shapes(odd, files, key=key, value=value)


def require_numbers(wanted: Iterable[str], files: Mapping[str, Stored], *, key: str, value: str) -> None:
    """Refuse weights that are stored as integers, or as floats of 8 bits and less, of a model that is not quantised.

    They are rounded, and what they were multiplied with is nowhere said.

    Args:
        wanted: names of the model's weights.
        files: tensors of the files.
        key, value: of the model.

    Raises:
        CaldpoError: naming the first of them, its file and dtype.
    """
    for name in wanted:
        if name in files and files[name].dtype not in _FLOATS:
            raise _bad(
                key,
                value,
                f"{name} in {files[name].file} is stored as {files[name].dtype}, and config.json has no"
                " quantization_config that says how to read it",
                f"take a checkpoint whose weights are {', '.join(_FLOATS)}",
            )


def _read_index(file: Path, key: str, folder: Path) -> dict[str, str]:
    remedy = "take the index and its files from the same save of safetensors"
    try:
        said: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _bad(key, folder, f"{INDEX} cannot be read: {str(error).splitlines()[0]}", remedy) from error
    places = said.get("weight_map") if isinstance(said, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise _bad(key, folder, f'{INDEX} has no "weight_map" from tensors to files', remedy)
    if not isinstance(said.get("metadata"), dict):
        raise _bad(key, folder, f'{INDEX} has no "metadata", which transformers reads', 'add "metadata": {} to it')
    for tensor, name in places.items():
        if PurePosixPath(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise _bad(key, folder, f"{INDEX} names a file outside of the folder ({tensor}: {name})", remedy)
        if not name.endswith(".safetensors"):
            why = f"{INDEX} names a file that is no safetensors ({tensor}: {name}), and others can run code when opened"
            raise _bad(key, folder, why, remedy)
    return places


def _what_is_wrong(file: Path, error: Exception) -> str:
    """What a person can do something about; else what the library says."""
    if not file.is_file():
        return "is no file"
    size = file.stat().st_size
    if size == 0:
        return "is empty"
    with file.open("rb") as opened:
        first = opened.read(len(_LFS))
        if first == _LFS:
            return "is a pointer of Git LFS, without the weights (git lfs pull fetches them)"
        length = int.from_bytes(first[:8], "little")
        if size < 8 or length > 100_000_000 or first[8:9] != b"{":  # the library reads no longer header
            return "does not begin as safetensors do"
        if length > size - 8:
            return f"is cut off: its header alone takes {length + 8:,} bytes, and the file has {size:,}"
        opened.seek(8)
        raw = opened.read(length)
    try:
        tensors = {n: t for n, t in json.loads(raw).items() if n != "__metadata__"}
        end = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
        if any(
            not isinstance(t["dtype"], str) or min([0, *t["shape"], *t["data_offsets"]]) < 0 for t in tensors.values()
        ):
            raise ValueError
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "has a header that is no JSON of tensors"
    if end > size:
        return f"is cut off: its header tells of {end:,} bytes, and the file has {size:,}"
    for name, tensor in tensors.items():
        if f"`{tensor['dtype']}`" in str(error).partition("expected")[0]:
            return f"has a tensor of a dtype that is not known ({name}: {tensor['dtype']})"
        bits = re.search(r"\d+", tensor["dtype"])  # F32, BF16, F8_E4M3; BOOL is a byte
        taken = math.prod(tensor["shape"]) * (int(bits[0]) if bits else 8) // 8
        start, end = tensor["data_offsets"]
        if taken != end - start:
            return (
                f"is damaged: {name} of shape {tensor['shape']} in {tensor['dtype']} takes {taken:,} bytes, and has"
                f" {end - start:,}"
            )
    return f"is damaged: {one_line(error)}"


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""


def _bad(key: str, value: object, why: str, remedy: str) -> CaldpoError:
    return CaldpoError(why, key=key, value=value, remedy=remedy)
