"""However the processes of a run are started, by Lightning, torchrun or Slurm, they train the same."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn

from caldpo.config.summary_file import read_summary
from tests.config.test_sweep_jobs import composed
from tests.distributed.slurm import environment, make_cluster
from tests.distributed.test_parity import table
from tests.evaluation.runs import write_data
from tests.helpers.messages import names
from tests.resume.runs import BASE, train

pytestmark = pytest.mark.slow

RANKS = ("trainer.devices=2", "trainer.strategy=fsdp", "data.micro_batch_size=2", "trainer.max_steps=4")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


def by_command(place: Path, *words: str) -> str:
    cluster = place / "cluster"
    done = subprocess.run(
        [sys.executable, "-m", "caldpo.train", *BASE, *RANKS, *words],
        cwd=place,
        env=environment(cluster if cluster.exists() else make_cluster(cluster)),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    log = cluster / "log.txt"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    return done.stdout


def test_lightning_and_slurm_start_the_same_run_as_torchrun(place: Path) -> None:
    """Slurm by a stand-in for its commands: a sweep of two runs as an array, each of two tasks."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra 'slurm'")
    torchrun = train(place, *BASE, *RANKS, "hydra.run.dir=torchrun", ranks=2)
    assert torchrun.codes == (0, 0), torchrun.said
    by_command(place, "hydra.run.dir=lightning")
    slurm = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.sweep.dir=sweep", "console=compact")
    said = by_command(place, "-m", *slurm, "loss=cal_dpo,dpo")
    names(said, "2 of 2", "sweep")
    expected = table(place / "torchrun")
    assert table(place / "lightning").equals(expected)
    runs = {run: read_summary(run) for run in place.glob("sweep/*/") if (run / "summary.json").exists()}
    tables = {str(said["loss_name"]): table(run) for run, said in runs.items() if said["status"] == "finished"}
    assert tables.keys() == {"cal_dpo", "dpo"}
    assert tables["cal_dpo"].equals(expected)
    assert not tables["dpo"]["loss"].equals(expected["loss"])


def test_the_batch_script_of_two_nodes_with_eight_gpus(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra 'slurm'")
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
    from submitit.core.core import Job

    cluster = make_cluster(place / "cluster")
    (cluster / "only_keep").touch()
    monkeypatch.setenv("PATH", environment(cluster)["PATH"])
    monkeypatch.setattr(Job, "results", lambda self: [JobReturn()])
    cfg = composed(
        *("experiment=ultrafeedback_zephyr", "trainer=fsdp", "trainer.num_nodes=2", "hydra/launcher=slurm"),
        *("hydra.launcher.partition=gpu", "hydra.launcher.account=lab", "hydra.launcher.setup=[module load cuda]"),
        f"hydra.sweep.dir={place}/sweep",
    )
    launcher = SlurmLauncher(**{k: v for k, v in cfg.hydra.launcher.items() if k != "_target_"})
    launcher.config, launcher.hydra_context, launcher.task_function = cfg, None, None
    launcher.launch([["loss=dpo"], ["loss=ipo"], ["loss=cal_dpo"]], 0)
    script = (cluster / "script.sh").read_text()
    flags = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in script.splitlines() if "#SBATCH" in line)
    asked = {
        "nodes": "2",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "cpus-per-task": "8",
        "mem": "64GB",
        "partition": "gpu",
        "account": "lab",
        "job-name": "ultrafeedback_zephyr",
        "time": "1440",
        "array": "0-2%3",
        "signal": "USR2@300",
        "open-mode": "append",
    }
    assert {name: flags.get(name) for name in asked} == asked
    assert flags["output"].startswith(f"{place}/sweep/.submitit/")
    *_, setup, _, command = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert setup == "module load cuda"
    words = shlex.split(command)
    assert words[0] == "srun", "which starts a process for each of the 16 GPUs"
    assert words[words.index(sys.executable) :][:4] == [sys.executable, "-u", "-m", "submitit.core._submit"]
