"""Reads an offline W&B run file: LevelDB's log format around W&B's protobuf records."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7


def records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Every record of a ``.wandb`` file, in order."""
    data, place, pending = path.read_bytes(), HEADER, b""  # the file begins with a header of its own
    while place + HEADER <= len(data):
        if (left := BLOCK - place % BLOCK) < HEADER:
            place += left
            continue
        _crc, length, kind = struct.unpack_from("<IHB", data, place)
        if kind == 0 and length == 0:
            break
        pending += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


def wait_until_written(path: Path, seconds: float = 20.0) -> None:
    """W&B's writer is a process of its own, which is done a moment after ``finish()`` returns."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(record.WhichOneof("record_type") == "exit" for record in records(path)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"{path} was not finished within {seconds} s")


def history(path: Path) -> list[dict[str, Any]]:
    """The logged rows, as dictionaries."""
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def config(path: Path) -> dict[str, Any]:
    """The configuration as it was sent with the run."""
    found: dict[str, Any] = {}
    for record in records(path):
        updates = list(record.config.update) + list(record.run.config.update)
        found |= {(u.key or "/".join(u.nested_key)): json.loads(u.value_json) for u in updates}
    return found


def summary(path: Path) -> dict[str, Any]:
    """The run's summary as it stands at the end, by dotted name."""
    found: dict[str, Any] = {}
    for record in records(path):
        updates = record.summary.update if record.WhichOneof("record_type") == "summary" else []
        found |= {(u.key or ".".join(u.nested_key)): json.loads(u.value_json) for u in updates}
    return found


def started(path: Path) -> float:
    """When the run, or this stretch of it, began: seconds."""
    (when,) = {r.run.start_time.ToNanoseconds() for r in records(path) if r.WhichOneof("record_type") == "run"}
    return when / 1e9


def run_id(path: Path) -> str:
    """The id of the run that a file is of."""
    (found,) = {r.run.run_id for r in records(path) if r.WhichOneof("record_type") == "run"}
    return str(found)
