#!/usr/bin/env bash
# transformers.get_scheduler is a function of arithmetic alone: a factor of the learning rate at each step. It would be expected
# to cost next to nothing to import beside torch and a model of transformers.
# Where PEFT and bitsandbytes are installed, whether used or not, it imports both (transformers.optimization ->
# transformers.trainer_utils -> peft -> bitsandbytes) and with bitsandbytes torch's compiler (torch._inductor.compile_fx):
# every training process pays for it in time and memory. A schedule of torch's own (LambdaLR) imports none of them.
# transformers 5.24.0, peft 0.21.2, bitsandbytes 0.50.2, torch 2.13.0. Seen on Linux:
#   LambdaLR       0 modules, 0.00 CPU s, peak 371 MiB, imported:
#   get_scheduler  844 modules, 1.06 CPU s, peak 425 MiB, imported: peft bitsandbytes torch._inductor.compile_fx
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 bitsandbytes==0.50.2
export HF_HOME="$dir/hf" HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore
"$dir/venv/bin/python" - <<'PY'
import subprocess
import sys

BEFORE = "import resource, sys, time, torch; from transformers import LlamaForCausalLM; modules, start = len(sys.modules), time.process_time(); "
AFTER = """
names = [name for name in ("peft", "bitsandbytes", "torch._inductor.compile_fx") if name in sys.modules]
seconds, memory = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{len(sys.modules) - modules} modules, {seconds:.2f} CPU s, peak {memory:.0f} MiB, imported:", *names)
"""
outcomes = {}
for name, code in (
    ("LambdaLR", "from torch.optim.lr_scheduler import LambdaLR"),
    ("get_scheduler", "from transformers import get_scheduler"),
):
    done = subprocess.run([sys.executable, "-c", BEFORE + code + AFTER], capture_output=True, text=True, check=True)
    print(f"{name:<14} {done.stdout.strip()}")
    outcomes[name] = done.stdout.partition("imported:")[2].split()
assert outcomes == {"LambdaLR": [], "get_scheduler": ["peft", "bitsandbytes", "torch._inductor.compile_fx"]}, outcomes
PY
