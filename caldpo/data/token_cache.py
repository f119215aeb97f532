"""Cache tokenised pairs on disk, so that the second run of a sweep does not tokenise again.

Every run reads and checks its data. Token ids, counts and refusals are cached under a digest of everything they depend
on: the pairs' texts, the tokenizer with its chat template, the date that one writes, the limits and the code. So no
entry can go stale.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from caldpo.data import chat_template, end_tokens, fast_encoding, special_text, template_checks, token_arrays, tokenize
from caldpo.data.chat_template import reads_clock
from caldpo.data.data_report import Rejection, TokenCounts
from caldpo.data.pair import PreferencePair
from caldpo.data.stored_pairs import StoredPairs
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.data.tokenize import TokenizedSplit, tokenize_pairs
from caldpo.utils.atomic_io import atomic_file
from caldpo.utils.folder_cache import locked

_ARRAYS = ("ends", "places", "cut_prompts", "tokens")  # those of the larger type first, so that all are aligned
_TYPES = dict.fromkeys(_ARRAYS, "<i8") | {"tokens": "<i4"}
_DTYPES = dict.fromkeys(_ARRAYS, "I64") | {"tokens": "I32"}  # as safetensors calls them


class DamagedTokensError(Exception):
    """A cache file whose content is damaged."""


def cached_tokens(
    pairs: Sequence[PreferencePair],
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache: Path | None,
    max_length: int,
    max_prompt_length: int,
    on_degenerate: Literal["drop", "keep"],
    console: Console,
    bar: Console,
    label: str,
    now: datetime | None = None,
) -> TokenizedSplit:
    """Tokenise ``pairs`` by :func:`~caldpo.data.tokenize.tokenize_pairs`, or read the result from ``cache``.

    One process tokenises; others with the same pairs wait for it. A damaged file is replaced.

    Args:
        pairs, tokenizer, max_length, max_prompt_length, on_degenerate, now: as for ``tokenize_pairs``.
        cache: folder of the files; None caches nothing, and neither does a tokenizer whose content is unknown (one
            written in Python, or with code of its own).
        console: for a line on where the ids come from.
        bar, label: of the progress bar.

    Raises:
        CaldpoError: as ``tokenize_pairs``; the folder cannot be written to.
    """
    pairs = StoredPairs.of(pairs)
    limits: dict[str, Any] = {
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "on_degenerate": on_degenerate,
    }
    make = functools.partial(
        tokenize_pairs, pairs, tokenizer, **limits, console=bar, label=f"Tokenising {label}", now=now
    )
    known = tokenizer.is_fast and type(tokenizer).__module__.startswith("transformers.")  # whose version enters
    if cache is None or not known or tokenizer.eos_token is None:  # tokenize_pairs refuses the last
        return make()
    dated = reads_clock(str(tokenizer.chat_template))
    inputs = {
        "tokenizer": tokenizer_digest(tokenizer),
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
        "date": (now or datetime.now()).isoformat() if dated else None,
        "libraries": [version(name) for name in ("tokenizers", "transformers", "jinja2")],
        "code": code_identity(),
        **limits,
    }
    digest = _digest(json.dumps(inputs, sort_keys=True).encode(), pairs.contents())
    name = f"tokens-{digest[:32]}"
    path = cache / f"{name}.safetensors"
    with locked(cache, name, key="data.cache"):
        if path.exists():
            try:
                split = _read(path, pairs, digest)
            except DamagedTokensError as damage:
                console.print(f"{path} is damaged ({damage}): tokenising again", soft_wrap=True, highlight=False)
            else:
                console.print(f"{label}: token ids from {path}", soft_wrap=True, highlight=False)
                return split
        split = make()
        try:
            _write(path, split, digest)
        except (OSError, SafetensorError) as error:  # a full disk: the run itself has its tokens
            console.print(f"{path} cannot be written ({error})", soft_wrap=True, highlight=False)
        return split


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of a tokenizer's vocabulary, merges, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = sorted(tokenizer.get_vocab().items())
    else:  # padding and truncation are those of its last call
        content = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [type(tokenizer).__name__, content, special, tokenizer.chat_template]
    return _digest(json.dumps(parts, sort_keys=True).encode())


@functools.cache
def code_identity() -> str:
    """Return a digest of the code that turns texts into ids, so that a change of it needs no version number."""
    modules = (template_checks, special_text, fast_encoding, chat_template, tokenize, token_arrays, end_tokens)
    return _digest(*(Path(str(module.__file__)).read_bytes() for module in modules))


def _read(path: Path, pairs: StoredPairs, digest: str) -> TokenizedSplit:
    try:
        with safe_open(path, "np") as file:  # checks sizes and the order of the content
            metadata = file.metadata() or {}
        arrays = _mapped(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise DamagedTokensError(f"cannot be read: {str(error).splitlines()[0]}") from error
    if metadata.get("checksum") != _checksum(digest, arrays, metadata.get("account", "")):
        raise DamagedTokensError("its checksum is wrong")
    account = json.loads(metadata["account"])
    places = arrays["places"].tolist()
    tokenized = set(places)
    left_out = [origin for place, origin in enumerate(pairs.origins()) if place not in tokenized]
    sources = pairs.take(places)
    return TokenizedSplit(
        pairs=TokenizedPairs.of_arrays(arrays["tokens"], arrays["ends"], sources),
        sources=sources,
        counts=TokenCounts(**account["counts"]),
        rejections=[
            Rejection(origin, kind, reason)
            for origin, (kind, reason) in zip(left_out, account["rejections"], strict=True)
        ],
        cut_prompts=frozenset(arrays["cut_prompts"].tolist()),
        places=places,
    )


def _write(path: Path, split: TokenizedSplit, digest: str) -> None:
    """Write the file atomically."""
    flat, ends = split.pairs.arrays()
    arrays = {
        "tokens": flat,
        "ends": ends,
        "places": np.array(split.places, dtype=np.int64),
        "cut_prompts": np.array(sorted(split.cut_prompts), dtype=np.int64),
    }
    rejections = [[rejection.kind, rejection.reason] for rejection in split.rejections]
    account = json.dumps({"counts": asdict(split.counts), "rejections": rejections})
    header: dict[str, Any] = {"__metadata__": {"checksum": _checksum(digest, arrays, account), "account": account}}
    end = 0
    for name in _ARRAYS:
        array = arrays[name]
        header[name] = {"dtype": _DTYPES[name], "shape": [len(array)], "data_offsets": [end, end := end + array.nbytes]}
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)
    with atomic_file(path) as file:  # not by the library, which takes the memory of the arrays twice more
        file.write(len(described).to_bytes(8, "little") + described)
        for name in _ARRAYS:
            file.write(arrays[name].astype(_TYPES[name], copy=False).data)


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a safetensors file into memory, where their pages can be shared and given back."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    arrays = {}
    for name in _ARRAYS:
        start, end = header[name]["data_offsets"]
        at = {"mode": "r", "offset": 8 + size + start, "shape": header[name]["shape"][0]}
        arrays[name] = np.asarray(np.memmap(path, _TYPES[name], **at)) if end > start else np.zeros(0, _TYPES[name])
    return arrays


def _checksum(digest: str, arrays: dict[str, np.ndarray], account: str) -> str:
    """Digest the content and its inputs, so that a file under another's name is noticed, too."""
    return _digest(digest.encode(), account.encode(), *(arrays[name].view(np.uint8).data for name in _ARRAYS))


def _digest(*parts: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
