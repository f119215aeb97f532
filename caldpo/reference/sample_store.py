"""Store the reference's samples on disk: drawn once for all runs with the same reference, prompts and settings.

An entry is a JSON file, written atomically: what determines the samples, the samples, and a checksum of both. The
process that draws them holds the entry's lock; others wait for it and read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from caldpo.errors import CaldpoError
from caldpo.utils.atomic_io import write_text
from caldpo.utils.digests import json_digest
from caldpo.utils.folder_cache import locked
from caldpo.utils.stream_console import Console

SAMPLER_VERSION = "1"
"""Version of the sampling: raised when it draws other samples from the same model, prompts and settings."""

Samples = list[list[int]]  # token ids of a response to each prompt


class DamagedSamplesError(Exception):
    """A file does not hold the samples of its entry; the message tells why."""


def sampling_facts(device: torch.device, prompts: Sequence[Sequence[int]], **settings: object) -> dict[str, str]:
    """Collect what determines samples besides the model: machine, libraries, prompts (token ids) and settings.

    One draw depends on a logit's last digit, so that the kind of processor and the number of threads are included.
    """
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else torch.backends.cpu.get_cpu_capability(),
        "CPU threads": str(torch.get_num_threads()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
        "sampler": SAMPLER_VERSION,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "prompts": json_digest([list(prompt) for prompt in prompts]),
        **{name: str(value) for name, value in settings.items()},
    }


def stored_samples(cache: Path, facts: Mapping[str, str], draw: Callable[[], Samples]) -> Samples:
    """Read the samples that ``facts`` determine from ``cache``, or draw and store them.

    Damaged samples are drawn again. Samples that cannot be stored are drawn all the same, with a line that tells why.
    """
    key = json_digest(dict(facts))
    path = cache / f"samples-{key[:16]}.json"
    with contextlib.suppress(DamagedSamplesError):  # reported with the lock: without it another process may write
        if (samples := _read(path, key)) is not None:
            return samples
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(cache, path.stem, key="reference.cache"))
        except CaldpoError as error:
            _report(f"not stored in {cache}: {error.message}")
            return draw()
        try:
            samples = _read(path, key)
        except DamagedSamplesError as damage:
            _report(f"{path} is damaged: {damage}; drawn again")
            samples = None
        if samples is None:
            samples = draw()
            content = {"determined by": dict(facts), "samples": samples, "sha256": _checksum(key, samples)}
            try:
                write_text(path, json.dumps(content) + "\n")
            except OSError as error:  # the run is at its end, and does not need the file
                _report(f"not stored in {path}: {error.strerror or error}")
        return samples


def _read(path: Path, key: str) -> Samples | None:
    """Read an entry; None where there is no file.

    Raises:
        DamagedSamplesError: the file has changed since it was written, or is another entry's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        samples: Samples = content["samples"]
        stored = content["sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedSamplesError(f"it cannot be read ({str(error).splitlines()[0]})") from error
    if stored != _checksum(key, samples):
        raise DamagedSamplesError("its checksum is wrong")
    return samples


def _checksum(key: str, samples: Samples) -> str:
    """Digest of the samples and the key, so that a file in the wrong place is detected, too."""
    return json_digest([key, samples])


def _report(text: str) -> None:
    Console().print(f"reference samples: {text}", soft_wrap=True, highlight=False, markup=False)
