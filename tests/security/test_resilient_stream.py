"""Runs whose terminal is closed, or whose output nobody reads any more."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from caldpo.security.redacted_streams import ResilientStream, redacted_output


def test_a_reader_that_has_gone_is_outlived(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as pipe:
        stream = ResilientStream(pipe)
        assert stream.write("a") == 1
        stream.flush()
        assert os.read(reader, 10) == b"a"
        os.close(reader)
        for _ in range(3):
            stream.write("b" * 10_000)
            stream.flush()
        assert Path(f"/proc/self/fd/{stream.fileno()}").samefile(os.devnull)
    assert capfd.readouterr().err.count("note: ") == 1


def test_a_terminal_that_is_closed_is_outlived() -> None:
    terminal, side = os.openpty()
    with os.fdopen(side, "w", encoding="utf-8") as file:
        os.close(terminal)
        print("a line", file=ResilientStream(file), flush=True)


def test_a_disk_without_room_is_not() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        ResilientStream(Full()).write("a")


def test_descriptors_that_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)  # as Python has it under `>&-`
    with redacted_output(outlived=True):
        print("a line", flush=True)
