"""A forked command is the command that Python starts: what it prints, its code, its files, and how signals find it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import forked
from tests.helpers.command import RANDOM_MODEL
from tests.helpers.forked import Forked, run, run_ranks, start

TRAIN = (*RANDOM_MODEL, "data.test_fraction=0.2", "trainer.max_steps=2", "callbacks.samples.prompts=2")
TRAIN += ("callbacks.samples.max_new_tokens=2", "trainer.progress_bar=false", "hydra.run.dir=run")
OF_THE_CLOCK = ("tokens_per_second", "seconds")


def by_python(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(forked.ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def module(folder: Path, text: str, name: str = "example") -> str:
    (folder / f"{name}.py").write_text(text)
    return name


def ended(process: Forked | subprocess.Popen[str], seconds: float = 60) -> tuple[int | None, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


@pytest.mark.parametrize(
    "words",
    [["loss.betta=1"], ["loss=dpo", "--cfg", "job"]],
    ids=" ".join,
)
def test_an_answer_is_that_of_python(words: list[str], tmp_path: Path) -> None:
    expected, actual = (call("caldpo.train", *words, cwd=tmp_path) for call in (by_python, run))
    assert (actual.returncode, actual.stdout, actual.stderr) == (
        expected.returncode,
        expected.stdout,
        expected.stderr,
    )


@pytest.mark.slow
def test_a_run_is_that_of_python(folder: Path) -> None:
    """With the default loggers; its figures to the last digit."""
    whole = {}
    for name, call in (("python", by_python), ("forked", run)):
        (folder / name).mkdir()
        for file in ("tokenizer", "pairs.jsonl"):
            (folder / name / file).symlink_to(folder / file)
        done = call("caldpo.train", *TRAIN, cwd=folder / name)
        assert done.returncode == 0, done.stderr
        output = folder / name / "run"
        own = (str(folder), " s, ", "wandb sync")  # paths, the clock, a name drawn at random
        lines = [line for line in done.stdout.splitlines() if not any(part in line for part in own)]
        files = sorted(str(path.relative_to(output)) for path in output.rglob("*") if "wandb" not in path.parts)
        header, *rows = [line.split(",") for line in (output / "metrics.csv").read_text().splitlines()]
        kept = [number for number, column in enumerate(header) if column not in OF_THE_CLOCK]
        samples = (output / "samples.jsonl").read_text()
        summary = json.loads((output / "summary.json").read_text())
        metrics = {key: value for key, value in summary["metrics"].items() if key not in OF_THE_CLOCK}
        wandb = len(list(output.glob("wandb/offline-run-*/*.wandb")))
        weights = (output / "policy" / "model.safetensors").read_bytes()
        whole[name] = [lines, files, [[row[number] for number in kept] for row in rows], samples, metrics]
        whole[name] += [sorted(summary), wandb, weights]
    for expected, actual in zip(whole["python"], whole["forked"], strict=True):
        assert actual == expected


def test_it_is_the_main_module_in_its_folder_and_environment(tmp_path: Path) -> None:
    example = module(
        tmp_path,
        "import json, os, sys\n"
        "assert __name__ == '__main__' and sys.modules['__main__'].__dict__ is globals()\n"
        "heavy = ('torch', 'transformers', 'pytorch_lightning', 'caldpo.training_run')\n"
        "print(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), os.getpid(), sys.path[0], sys.stdin.read()]))\n"
        "missing = [name for name in heavy if name not in sys.modules]\n"
        "print(missing, sys.modules['torch'].cuda.is_initialized(), file=sys.stderr)\n"
        "sys.exit(7)\n",
    )
    variables = {name: value for name, value in os.environ.items() if name != "HOME"} | {"SOME_KEY": "x"}
    assert forked.read_at_import(variables) == forked.read_at_import(forked.AT_START)
    process = start(example, "a b", "c", cwd=tmp_path, environment=variables)
    assert isinstance(process, Forked)
    code, out, err = ended(process)
    assert (code, err) == (7, "[] False\n"), "everything heavy was there, and no GPU in use"
    assert json.loads(out) == [["a b", "c"], str(tmp_path), variables, process.pid, str(tmp_path), ""]


def test_what_libraries_read_when_imported_makes_a_real_process(tmp_path: Path) -> None:
    example = module(tmp_path, "import os, sys; print(os.environ['HF_HUB_OFFLINE'], 'torch' in sys.modules)")
    process = start(example, cwd=tmp_path, environment=os.environ | {"HF_HUB_OFFLINE": "0"})
    assert isinstance(process, subprocess.Popen)
    assert ended(process) == (0, "0 False\n", "")


def test_an_error_is_told_and_files_are_whole(tmp_path: Path) -> None:
    example = module(tmp_path, "print('begun')\nopen('file', 'w').write('x' * 10)\nraise ValueError('boom')\n")
    code, out, err = ended(start(example, cwd=tmp_path))
    assert (code, out) == (1, "begun\n")
    assert err.endswith("ValueError: boom\n")
    assert (tmp_path / "file").read_text() == "x" * 10


WAITS = """
import os, signal, sys, time
from pathlib import Path
def stop(number, frame):
    print("stopped", flush=True)
    sys.exit(128 + number)
if sys.argv[1] == "heeds":
    signal.signal(signal.SIGTERM, stop)
other = os.fork()
Path(f"{'waiting' if other else 'child'}").write_text(f"{os.getpid()}")
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("number", "behave", "code"),
    [
        (signal.SIGTERM, "heeds", 143),
        (signal.SIGTERM, "x", -15),
        (signal.SIGINT, "x", -2),
        (signal.SIGKILL, "x", -9),
    ],
)
def test_a_signal_reaches_its_process_group(number: int, behave: str, code: int, tmp_path: Path) -> None:
    process = start(module(tmp_path, WAITS), behave, cwd=tmp_path, session=True)
    try:
        while len([file for file in tmp_path.glob("[cw]*[dg]") if file.read_text()]) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        assert (tmp_path / "waiting").read_text() == str(process.pid)
        assert os.getpgid(process.pid) == os.getsid(process.pid) == process.pid
    finally:
        os.killpg(process.pid, number)
    actual, out, err = ended(process)
    assert actual == code
    assert out.count("stopped") == 2 * (behave == "heeds")
    assert ("KeyboardInterrupt" in err) == (number == signal.SIGINT)


@pytest.mark.parametrize("variables", [{}, {"HF_HUB_OFFLINE": "0"}], ids=["forked", "python"])
def test_one_that_does_not_end_is_ended(variables: dict[str, str], tmp_path: Path) -> None:
    sleeper = module(tmp_path, "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        run(sleeper, cwd=tmp_path, environment=os.environ | variables, timeout=2)
    end = time.monotonic() + 20
    while Path("/proc", (tmp_path / "pid").read_text()).exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_it_may_start_processes_by_every_method(method: str, tmp_path: Path) -> None:
    example = module(
        tmp_path,
        "import multiprocessing, os\n"
        "def square(x): return x * x, os.getppid()\n"
        "if __name__ == '__main__':\n"
        f"    with multiprocessing.get_context('{method}').Pool(2) as pool:\n"
        "        print([number for number, parent in pool.map(square, range(4))])\n",
    )
    assert ended(start(example, cwd=tmp_path)) == (0, "[0, 1, 4, 9]\n", "")


def test_ranks_have_what_torchrun_sets(tmp_path: Path) -> None:
    example = module(
        tmp_path,
        "import os, sys, torch\n"
        "from pytorch_lightning.utilities import rank_zero_only\n"
        "assert torch.distributed.is_torchelastic_launched()\n"
        "torch.distributed.init_process_group('gloo')\n"
        "mine = torch.tensor([float(os.environ['LOCAL_RANK']) + 1])\n"
        "torch.distributed.all_reduce(mine)\n"
        "print(rank_zero_only.rank, mine.item())\n"
        "torch.distributed.destroy_process_group()\n"
        "sys.exit(3 * torch.distributed.is_initialized() + 5 * (os.environ['RANK'] == '1'))\n",
    )
    done = run_ranks(2, example, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (5, "0 3.0\n1 3.0\n"), done.stderr


def test_the_server_has_no_thread_that_a_fork_would_miss(tmp_path: Path) -> None:
    """Threads are not forked; the allocator of Arrow is one that knows of it."""
    example = module(
        tmp_path,
        "import os, threading\n"
        "parent = os.getppid()\n"
        "tasks = [f'/proc/{parent}/task/{task}/comm' for task in os.listdir(f'/proc/{parent}/task')]\n"
        "names = [open(task).read().strip() for task in tasks]\n"
        "print(threading.active_count(), sorted(set(names[1:]) - {'jemalloc_bg_thd'}))\n",
    )
    if not Path("/proc/self/task").exists():
        pytest.skip("threads of another process are read from /proc")
    assert ended(start(example, cwd=tmp_path)) == (0, "1 []\n", "")
