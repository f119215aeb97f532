"""Commands in processes of their own that import nothing anew: forked from a server that has imported it all.

``python -m caldpo.train`` imports for 5 to 10 s of the processor, a fork for none. A forked command has its own pid,
working folder, environment and, if asked for, session; it is the module run as ``__main__``. Where the environment
differs in what libraries read when they are imported, the command is started by Python instead.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
# beginnings of the names of variables that Python or a library reads at its start
_READ_AT_IMPORT = ("CUDA_", "HF_", "KMP_", "LC_", "LD_", "MKL_", "MPL", "OMP_", "PYTHON", "PYTORCH_", "TORCH_")
_READ_AT_IMPORT += ("TRANSFORMERS_",)
# no reason to start Python: read by a forked command too, and what libraries set in a test process that imports them
_READ_LATER = ("PYTHONPATH",)
_READ_LATER += ("PYTORCH_NVML_BASED_CUDA_CHECK", "HF_XET_HIGH_PERFORMANCE")  # lightning_fabric, lm_eval
_READ_LATER += ("KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK")  # joblib, scikit-learn


AT_START = dict(os.environ)  # before any test, which may change it for its own commands


@functools.cache
def context() -> Any:
    """The ``multiprocessing`` context whose processes are forked from the server; one server in a test process."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["tests.helpers.preloaded"])
    with contextlib.chdir(ROOT), mock.patch.dict(os.environ, AT_START, clear=True):  # where it finds the modules
        forkserver.ensure_running()
    return forking


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k.startswith(_READ_AT_IMPORT) and k not in _READ_LATER}


class Forked:
    """A forked command, with the methods of :class:`subprocess.Popen` that tests use."""

    def __init__(self, arguments: list[str], cwd: Path, environment: Mapping[str, str], session: bool) -> None:
        self._printed = tempfile.TemporaryDirectory()
        self._files = [Path(self._printed.name, name) for name in ("out", "err")]
        files = [str(file) for file in self._files]
        self._process = context().Process(target=_run, args=(arguments, str(cwd), dict(environment), session, files))
        self._process.start()
        self.pid: int = self._process.pid
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            while session and self.poll() is None and os.getpgid(self.pid) != self.pid:
                time.sleep(0.001)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self.returncode

    def communicate(self, *, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it and its children have printed."""
        self.wait(timeout)
        out, err = (file.read_text(errors="replace") if file.exists() else "" for file in self._files)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = Forked | subprocess.Popen[str]


def start(
    module: str, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None, session: bool = False
) -> Process:
    """Start ``python -m module`` in the folder ``cwd``; with ``session`` it leads a session and process group."""
    environment = os.environ if environment is None else environment
    if read_at_import(environment) == read_at_import(AT_START):
        return Forked([module, *arguments], cwd, environment, session)
    return start_python(module, *arguments, cwd=cwd, environment=environment, session=session)


def start_python(
    module: str, *arguments: str, cwd: Path, environment: Mapping[str, str], session: bool = False
) -> subprocess.Popen[str]:
    """As :func:`start`, by Python itself: also for what starts processes that end only with its threads (joblib's)."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=session,
    )


def run(
    module: str,
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` in the folder ``cwd`` to its end."""
    process = start(module, *arguments, cwd=cwd, environment=environment)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
        code = process.wait()
    return subprocess.CompletedProcess([module, *arguments], code, out, err)


def run_ranks(
    ranks: int, module: str, *arguments: str, cwd: Path, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` in as many processes as torchrun would start; what all of them have printed.

    The return code is the first that is not 0.
    """
    port = free_port()
    of_ranks = [torchrun_variables(rank, ranks, port) if ranks > 1 else {} for rank in range(ranks)]
    started = [start(module, *arguments, cwd=cwd, environment=os.environ | variables) for variables in of_ranks]
    try:
        printed = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
        codes = [process.wait() for process in started]
    out, err = ("".join(texts) for texts in zip(*printed, strict=True))
    return subprocess.CompletedProcess([module, *arguments], next(filter(None, codes), 0), out, err)


def torchrun_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun sets for a process on a node of its own."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "LOCAL_WORLD_SIZE": ranks, "WORLD_SIZE": ranks}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    return {name: str(number) for name, number in numbers.items()} | meeting


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def take_over(environment: Mapping[str, str], cwd: str) -> None:
    """Make this forked process one that was started with ``environment`` in ``cwd``."""
    import torch
    from pytorch_lightning.utilities import rank_zero_only

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    rank_zero_only.rank = int(environment.get("RANK", 0))  # read when imported, before this process was forked


def _run(words: list[str], cwd: str, environment: dict[str, str], session: bool, files: list[str]) -> None:
    if session:
        os.setsid()
    for handle, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), handle)
    for number in (signal.SIGINT, signal.SIGHUP):  # ignored where the tests run in the background of a shell
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    take_over(environment, cwd)
    folders = [cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*folders, *(folder for folder in sys.path if folder not in ("", *folders))]
    sys.argv = list(words)
    sys.modules.pop(words[0], None)  # it is run, not imported
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # as Python ends by it
        traceback.print_exc()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
