"""Files and folders are whole under their name whatever happens to who writes them, and nothing is left lying about."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from caldpo.utils import atomic_io as files
from caldpo.utils import digests
from caldpo.utils.atomic_io import atomic_file, atomic_folder, atomic_text, is_alive, write_text
from caldpo.utils.digests import file_digest

KILLS = 8
LARGE = 300_000  # characters: more than one write of the system's


def child(code: str, *arguments: object, wrapped: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A process that runs ``code`` with the project's files at hand."""
    head = "import hashlib, json, os, resource, signal, sys\nfrom pathlib import Path\n"
    head += "from caldpo.utils.atomic_io import *\n"
    command = [*wrapped, sys.executable, "-c", head + dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


WRITES_A_FILE = f"""
    for number in range(10**9):
        body = str(number % 10) * {LARGE}
        said = json.dumps({{"body": body, "sum": hashlib.sha256(body.encode()).hexdigest()}})
        write_text(Path(sys.argv[1]), said)
"""
WRITES_A_FOLDER = f"""
    for number in range(10**9):
        with atomic_folder(Path(sys.argv[1])) as draft:
            (draft / "below").mkdir()
            for place in ("one", "below/two"):
                (draft / place).write_text(str(number % 10) * {LARGE})
"""


def look_at_file(path: Path) -> None:
    content = json.loads(path.read_text())
    assert hashlib.sha256(content["body"].encode()).hexdigest() == content["sum"]


def look_at_folder(path: Path) -> None:
    one, two = (path / "one").read_text(), (path / "below" / "two").read_text()
    assert len(one) == len(two) == LARGE
    assert one == two  # of one version


@pytest.mark.parametrize(
    ("code", "look"), [(WRITES_A_FILE, look_at_file), (WRITES_A_FOLDER, look_at_folder)], ids=["file", "folder"]
)
def test_kills_at_random_moments_leave_a_whole_version(code: str, look: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "thing"
    draws = random.Random(0)
    seen = set()
    for _ in range(KILLS):
        process = child(code, path)
        before = path.stat().st_ino if path.exists() else None
        while not path.exists() or path.stat().st_ino == before:  # it has come to write
            assert process.poll() is None, process.communicate()
        time.sleep(draws.uniform(0, 0.03))
        process.kill()
        process.communicate()
        look(path)
        drafts = [entry.name for entry in tmp_path.iterdir() if entry != path]
        assert len(drafts) <= 1, "those of earlier kills are gone"
        seen |= set(drafts)
    assert seen, "no kill came in the middle of writing"
    if code is WRITES_A_FILE:
        write_text(path, "{}")
    else:
        with atomic_folder(path):
            pass
    assert list(tmp_path.iterdir()) == [path], "the next writer clears away what the last kill left"


def test_a_reader_beside_the_writer_never_sees_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "thing"
    write_text(path, json.dumps({"body": "", "sum": hashlib.sha256(b"").hexdigest()}))
    process = child(WRITES_A_FILE, path)
    try:
        versions = set()
        end = time.monotonic() + 20
        while len(versions) < 30 and time.monotonic() < end:
            look_at_file(path)
            versions.add(path.stat().st_ino)
    finally:
        process.kill()
        process.communicate()
    assert len(versions) > 5


def test_a_folder_in_use_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system cannot swap two names there is a moment without either, and no loss."""
    for can in (True, False):
        if not can:
            monkeypatch.setattr(files, "_exchange", lambda one, other: False)
        for text in ("old", "new"):
            with atomic_folder(tmp_path / "thing") as draft:
                (draft / "x").write_text(text)
        assert (tmp_path / "thing" / "x").read_text() == "new"
        assert [entry.name for entry in tmp_path.iterdir()] == ["thing"]


LIMITED = """
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
"""
TOO_MUCH = f"""
    path = Path(sys.argv[1])
    try:
        if sys.argv[2] == "file":
            write_text(path / "thing", "x" * {LARGE})
        elif sys.argv[2] == "folder":
            with atomic_folder(path / "thing") as draft:
                (draft / "x").write_text("x" * {LARGE})
        else:
            append_text(path / "thing", "x" * {LARGE} + "\\n")
    except OSError as error:
        print(json.dumps([error.errno, str(error)]))
"""


@pytest.mark.parametrize("kind", ["file", "folder", "lines"])
def test_what_does_not_fit_leaves_the_old_version(kind: str, tmp_path: Path) -> None:
    thing = tmp_path / "thing"
    if kind == "folder":
        thing.mkdir()
        (thing / "x").write_text("old")
    else:
        thing.write_text("old\n")
    process = child(LIMITED + TOO_MUCH, tmp_path, kind)
    out, err = process.communicate(timeout=30)
    number, text = json.loads(out or "null") or pytest.fail(err)
    assert number in (errno.EFBIG, errno.ENOSPC)
    assert str(thing) in text, "the file that was wanted is named, and not its draft"
    assert (thing / "x" if kind == "folder" else thing).read_text().strip() == "old"
    assert list(tmp_path.iterdir()) == [thing], "the draft is gone"


def test_a_full_disk_leaves_the_old_version(tmp_path: Path) -> None:
    """On a file system of 200 kB of its own, which its own name space goes with."""
    mount = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=200k none "$0" && exec "$@"', str(tmp_path))
    probe = subprocess.run([*mount, "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"no file system can be mounted here: {probe.stderr.decode().strip()}")
    code = f"""
        path = Path(sys.argv[1]) / "thing"
        write_text(path, "old")
        for attempt in range(3):
            try:
                write_text(path, "x" * {LARGE})
            except OSError as error:
                print(error.errno, path.read_text(), os.listdir(path.parent), str(path) in str(error))
    """
    out, err = child(code, tmp_path, wrapped=mount).communicate(timeout=30)
    assert out.splitlines() == [f"{errno.ENOSPC} old ['thing'] True"] * 3, err


def test_an_error_of_the_writer_keeps_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "thing"):
        (tmp_path / "missing").read_text()
    assert caught.value.filename == str(tmp_path / "missing")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "thing"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_drafts_of_others_stay(tmp_path: Path) -> None:
    """Those of living processes, of another machine, and of a file whose name begins alike."""
    with atomic_file(tmp_path / "thing") as file, atomic_file(tmp_path / "thing.json"):
        own = {entry.name for entry in tmp_path.iterdir()}
        assert len(own) == 2
        foreign = tmp_path / ".thing.00000000-1-0.partial"
        foreign.write_text("of another machine")
        thread = threading.Thread(target=write_text, args=(tmp_path / "thing", "of another thread"))
        thread.start()
        thread.join()
        assert {entry.name for entry in tmp_path.iterdir()} == own | {"thing", foreign.name}
        file.write(b"last")
    assert (tmp_path / "thing").read_text() == "last"
    old = time.time() - 2 * 86400
    os.utime(foreign, (old, old))
    write_text(tmp_path / "thing", "again")
    assert not foreign.exists(), "nobody writes for days"


def test_a_draft_of_a_process_with_our_number_is_left_behind(tmp_path: Path) -> None:
    """As in a container that was started anew."""
    left = tmp_path / f".thing.{files._machine()}-{os.getpid()}-x.partial"
    left.write_text("of an earlier process")
    write_text(tmp_path / "thing", "x")
    assert not left.exists()


def test_names_as_long_as_file_systems_allow(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_text(path, "x")
    assert path.read_text() == "x"


APPENDS = """
    for number in range(300):
        append_text(Path(sys.argv[1]), json.dumps({"from": sys.argv[2], "number": number, "body": "y" * 5000}) + "\\n")
"""


def test_lines_of_processes_at_once_are_whole_and_all_there(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"from": "one that was ki')
    for process in [child(APPENDS, path, who) for who in "ab"]:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    torn, *lines = path.read_text().splitlines()
    assert torn == '{"from": "one that was ki'
    found = [json.loads(line) for line in lines]
    for who in "ab":
        assert [line["number"] for line in found if line["from"] == who] == list(range(300))


def test_tables_keep_their_own_line_ends(tmp_path: Path) -> None:
    with atomic_text(tmp_path / "t.csv") as file:
        csv.writer(file, lineterminator="\n").writerows([["é", "a\r\nb"], ["c", "d"]])
    assert (tmp_path / "t.csv").read_bytes() == 'é,"a\r\nb"\nc,d\n'.encode()


def test_a_digest_is_of_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "CHUNK", 4)
    content = b"0123456789"
    (tmp_path / "x").write_bytes(content)
    expected = hashlib.sha256()
    for piece in (b"0123", b"4567", b"89"):
        expected.update(hashlib.sha256(piece).digest())
    assert file_digest(tmp_path / "x") == expected.hexdigest()
    for place in range(len(content)):
        (tmp_path / "x").write_bytes(content[:place] + b"!" + content[place + 1 :])
        assert file_digest(tmp_path / "x") != expected.hexdigest()


def test_files_of_a_folder_are_for_whom_umask_lets(tmp_path: Path) -> None:
    """safetensors and Python's temporary files are for their owner alone."""
    before = os.umask(0o022)
    try:
        with atomic_folder(tmp_path / "policy") as draft:
            (draft / "below").mkdir()
            for place in (draft / "a", draft / "below" / "b"):
                place.touch(mode=0o600)
    finally:
        os.umask(before)
    assert {f.stat().st_mode & 0o777 for f in (tmp_path / "policy").rglob("*") if f.is_file()} == {0o644}


def test_whether_a_process_lives() -> None:
    process = child("signal.pause()")
    assert is_alive(process.pid)
    assert is_alive(os.getpid())
    process.kill()
    process.communicate()
    assert not is_alive(process.pid)
