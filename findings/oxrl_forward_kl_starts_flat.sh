#!/usr/bin/env bash
# oxrl 1.7.2's FDPO with fdpo_divergence="forward_kl". f-DPO's forward KL has the link f'(u) = -1/u (arXiv 2309.16240, table 1),
# so that the margin is beta (exp(-b) - exp(-a)) of the log-ratios a (chosen) and b (rejected), with slope +beta for a
# and -beta for b at policy = reference: training begins as DPO's does.
# oxrl's margin is DPO's plus the link with the other sign, beta (a - b + exp(-a) - exp(-b)). Its slope is 0 where the policy is
# the reference, which is where every training begins. x + exp(-x) is least at 0, so that the chosen response is pushed away from
# the reference to whichever side it lies, and the rejected one back to it. Seen, the loss's gradient by a and by b at beta 0.1:
#   reverse_kl, policy = reference          -0.0500  +0.0500
#   forward_kl, policy = reference          +0.0000  +0.0000
#   forward_kl, both 1 nat below            +0.0859  -0.0859   (this pushes the chosen response down and the rejected up)
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy
"$dir/venv/bin/python" -m pip install --quiet --no-deps --target "$dir/oxrl" oxrl==1.7.2
PYTHONWARNINGS=ignore "$dir/venv/bin/python" - "$dir/oxrl/oxrl/algs/fdpo.py" <<'PY'
import importlib.util
import inspect
import sys

import torch

# by its file: the package's own imports need transformers and more
spec = importlib.util.spec_from_file_location("fdpo", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
(loss,) = (c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == "fdpo")


def gradient(divergence: str, log_ratio: float) -> list[float]:
    made = loss(None, None, None, beta=0.1, fdpo_divergence=divergence)
    chosen, rejected = (torch.tensor([log_ratio - 20.0], requires_grad=True) for _ in range(2))
    reference = torch.tensor([-20.0])
    made.compute_loss(chosen, rejected, reference, reference)[0].backward()
    print(f"{divergence}, log-ratios {log_ratio:+.0f}   {chosen.grad.item():+.4f}  {rejected.grad.item():+.4f}")
    return [chosen.grad.item(), rejected.grad.item()]


reverse, start, below = gradient("reverse_kl", 0.0), gradient("forward_kl", 0.0), gradient("forward_kl", -1.0)
assert abs(reverse[0] + 0.05) < 1e-6, "DPO's"
assert start == [0.0, 0.0], "no gradient at policy = reference"
assert below[0] > 0 > below[1], "the wrong way below the reference"
PY
