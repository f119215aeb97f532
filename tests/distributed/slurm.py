"""A stand-in for a Slurm cluster of one node: the commands that submitit calls, as far as it calls them.

``sbatch`` keeps the script, and starts it for each element of its array with the variables that Slurm sets; ``srun``
starts as many tasks as the script asks for; ``sacct`` tells which elements have ended.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_SBATCH = r"""
import os, re, subprocess, sys
from pathlib import Path
here = Path(__file__).parent
script = Path(sys.argv[-1])
text = script.read_text()
(here / "script.sh").write_text(text)
asked = dict(re.findall(r"#SBATCH --([\w-]+)=(.*)", text))
last = int(re.match(r"0-(\d+)", asked["array"])[1])
print("Submitted batch job 77", flush=True)
if not (here / "only_keep").exists():
    tasks = asked["ntasks-per-node"]
    one = {"SLURM_JOB_NAME": asked["job-name"], "SLURM_ARRAY_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "1"}
    one |= {"SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": tasks, "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0"}
    run = "for i in $(seq 0 %d); do SLURM_ARRAY_TASK_ID=$i SLURM_JOB_ID=$((78 + i)) bash %s; touch %s/ended.$i; done"
    log = open(here / "log.txt", "w")
    command = ["bash", "-c", run % (last, script, here)]
    quiet = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "start_new_session": True}
    subprocess.Popen(command, env=os.environ | one, **quiet)
"""
_SRUN = r"""
import os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("-"):  # --unbuffered, --output PATTERN
    words = words[1:] if words[0] == "--unbuffered" else words[2:]
numbers = [str(i) for i in range(int(os.environ["SLURM_NTASKS"]))]
tasks = [subprocess.Popen(words, env=os.environ | {"SLURM_PROCID": n, "SLURM_LOCALID": n}) for n in numbers]
sys.exit(max(task.wait() for task in tasks))
"""
_SACCT = r"""
from pathlib import Path
here = Path(__file__).parent
print("JobID|State|NodeList")
for i in range(9):
    print(f"77_{i}|{'COMPLETED' if (here / f'ended.{i}').exists() else 'RUNNING'}|localhost")
"""


def make_cluster(folder: Path) -> Path:
    """The folder of commands to put on the PATH; ``script.sh`` in it is going to be the last batch script."""
    folder.mkdir()
    for name, text in {"sbatch": _SBATCH, "srun": _SRUN, "sacct": _SACCT}.items():
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(0o755)
    return folder


def environment(cluster: Path) -> dict[str, str]:
    """Of a command that is given on this cluster."""
    root = str(Path(__file__).parents[2])
    found = {"PATH": f"{cluster}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return {**os.environ, **found, "HF_HUB_OFFLINE": "1"}
