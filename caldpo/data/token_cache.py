"""Tokenised pairs on disk, so that the second run of a sweep does not tokenise again.

Reading, checking and rendering are done in every run: they take an eighth of the time, and what they count and
refuse stays the truth about the data of this very run, wherever that came from. Token ids are kept under a
digest of what determines them: the rendered texts, the tokenizer, the limits and the code. So a changed row,
chat template (also one that writes today's date) or tokenizer is another digest, and nothing can go stale.
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
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from transformers import PreTrainedTokenizerBase

from caldpo.data import chat_template as template
from caldpo.data import end_tokens, tokenize
from caldpo.data import special_text as special
from caldpo.data import template_checks as faithful
from caldpo.data import template_clock as clock
from caldpo.data import token_arrays as tokens
from caldpo.data.chat_template import Renderer
from caldpo.data.load import Rejection
from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import RowError
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.data.tokenize import TokenCounts, TokenizedSplit, tokenize_pairs
from caldpo.environments.folder_cache import locked
from caldpo.utils.atomic_io import atomic_file

_ARRAYS = ("tokens", "ends", "places", "cut_prompts")


class DamagedTokensError(Exception):
    """A file that does not hold what it should; says why."""


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
    """What :func:`~caldpo.data.tokenize.tokenize_pairs` makes of ``pairs``, read from ``cache`` if it is there.

    One process tokenises; others that want the same wait for it. A file that is damaged is replaced.

    Args:
        pairs, tokenizer, max_length, max_prompt_length, on_degenerate: as for ``tokenize_pairs``.
        cache: folder of the files; None keeps nothing, and neither does a tokenizer whose content cannot be told
            (one that is written in Python).
        console: is told where the ids come from.
        bar: where progress is shown.
        label: the words before it.
        now: as for ``tokenize_pairs``; what a template writes of it is in the rendered texts.

    Raises:
        CaldpoError: as ``tokenize_pairs``; the folder cannot be written to.
    """
    settings: dict[str, Any] = {
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "on_degenerate": on_degenerate,
    }
    told: dict[str, Any] = {"console": bar, "label": f"Tokenising {label}"}
    make = functools.partial(tokenize_pairs, pairs, tokenizer, **settings, **told, now=now)
    identity = tokenizer_identity(tokenizer)
    if cache is None or identity is None or tokenizer.eos_token is None:  # the last is refused in there
        return make()
    shown = track(pairs, f"Rendering {label}", console=bar, transient=True, disable=not bar.is_terminal)
    renderer = Renderer(tokenizer, now)
    digest = _digest(
        json.dumps([identity, settings, code_identity()], sort_keys=True).encode(),
        *(_rendered(pair, renderer) for pair in shown),
    )
    name = f"tokens-{digest[:32]}"
    path = cache / f"{name}.safetensors"
    with locked(cache, name, key="data.cache"):
        if path.exists():
            try:
                split = _read(path, pairs, digest)
            except DamagedTokensError as damage:
                console.print(f"{path} is damaged ({damage}): tokenised again", soft_wrap=True, highlight=False)
            else:
                console.print(f"{label}: token ids from {path}", soft_wrap=True, highlight=False)
                return split
        split = make()
        try:
            _write(path, split, digest)
        except (OSError, SafetensorError) as error:  # a full disk: the run itself has all it needs
            console.print(f"{path} cannot be kept ({error})", soft_wrap=True, highlight=False)
        return split


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """Everything about a tokenizer that texts and limits leave open; None where it cannot be told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    return {
        "class": type(tokenizer).__name__,
        "backend": _digest(backend.to_str().encode()),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
        "libraries": [version("tokenizers"), version("transformers")],
    }


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that texts and ids are to each other, of any tokenizer, and of its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        said: Any = sorted(tokenizer.get_vocab().items())
    else:  # how it pads and truncates is what its last call has asked for
        said = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    told = [type(tokenizer).__name__, said, special, tokenizer.chat_template]
    return _digest(json.dumps(told, sort_keys=True).encode())


@functools.cache
def code_identity() -> str:
    """A digest of the code that turns texts into ids: whoever changes it need not remember these files."""
    modules = (clock, faithful, special, template, tokenize, tokens, end_tokens)
    return _digest(*(Path(str(module.__file__)).read_bytes() for module in modules))


def _rendered(pair: PreferencePair, renderer: Renderer) -> bytes:
    try:
        texts: Any = asdict(renderer.pair(pair))
    except RowError as error:
        texts = [error.kind, error.reason]
    return json.dumps(texts).encode()


def _read(path: Path, pairs: Sequence[PreferencePair], digest: str) -> TokenizedSplit:
    try:
        with safe_open(path, "np") as file:
            said = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
    except (SafetensorError, OSError, KeyError) as error:
        raise DamagedTokensError(f"cannot be read: {str(error).splitlines()[0]}") from error
    if said.get("checksum") != _checksum(digest, arrays, said.get("account", "")):
        raise DamagedTokensError("its checksum is wrong")
    account = json.loads(said["account"])
    places = arrays["places"].tolist()
    kept = set(places)
    left_out = [pair for place, pair in enumerate(pairs) if place not in kept]
    sources = [pairs[place] for place in places]
    return TokenizedSplit(
        pairs=TokenizedPairs.of_arrays(arrays["tokens"], arrays["ends"], sources),
        sources=sources,
        counts=TokenCounts(**account["counts"]),
        rejections=[
            Rejection(pair.origin, kind, reason)
            for pair, (kind, reason) in zip(left_out, account["rejections"], strict=True)
        ],
        cut_prompts=frozenset(arrays["cut_prompts"].tolist()),
        places=places,
    )


def _write(path: Path, split: TokenizedSplit, digest: str) -> None:
    """The file appears whole under its name, or not at all."""
    flat, ends = split.pairs.arrays()
    arrays = {
        "tokens": flat,
        "ends": ends,
        "places": np.array(split.places, dtype=np.int64),
        "cut_prompts": np.array(sorted(split.cut_prompts), dtype=np.int64),
    }
    rejections = [[rejection.kind, rejection.reason] for rejection in split.rejections]
    account = json.dumps({"counts": asdict(split.counts), "rejections": rejections})
    with atomic_file(path) as file:
        file.write(save(arrays, {"checksum": _checksum(digest, arrays, account), "account": account}))


def _checksum(digest: str, arrays: dict[str, np.ndarray], account: str) -> str:
    """Of the content and of what it was made from, so that a file under another's name is noticed, too."""
    return _digest(digest.encode(), account.encode(), *(arrays[name].tobytes() for name in _ARRAYS))


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()
