#!/usr/bin/env bash
# oxrl 1.7.2's RobustDPO with label_smoothing e, documented as unbiased under label noise. Robust DPO (arXiv 2403.00409, Eq. 11)
# is ((1 - e) l(h) - e l(-h)) / (1 - 2 e) with l = -log sigmoid, so that its mean over labels flipped with probability e is
# l(h), whatever h is.
# oxrl adds the second term in place of subtracting it: the loss is conservative DPO's over 1 - 2 e, whose mean over flipped
# labels is another function, with its minimum at a finite margin. Seen with e 0.1, mean over flipped labels beside l(h):
#   h = 0   0.8664  0.6931
#   h = 2   0.6087  0.1269
#   h = 5   1.1334  0.0067
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy
"$dir/venv/bin/python" -m pip install --quiet --no-deps --target "$dir/oxrl" oxrl==1.7.2
PYTHONWARNINGS=ignore "$dir/venv/bin/python" - "$dir/oxrl/oxrl/algs/robust_dpo.py" <<'PY'
import importlib.util
import inspect
import math
import sys

import torch

# by its file: the package's own imports need transformers and more
spec = importlib.util.spec_from_file_location("robust_dpo", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
(loss,) = (c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == "robust_dpo")
noise, beta = 0.1, 0.1
made = loss(None, None, None, beta=beta, label_smoothing=noise)
zero = torch.zeros(1)
seen = []
for h in (0.0, 2.0, 5.0):
    log_ratio = torch.tensor([h / beta])
    right = made.compute_loss(log_ratio, zero, zero, zero)[0].item()
    flipped = made.compute_loss(zero, log_ratio, zero, zero)[0].item()
    mean, clean = (1 - noise) * right + noise * flipped, math.log1p(math.exp(-h))
    seen.append((mean, clean))
    print(f"h = {h:.0f}   {mean:.4f}  {clean:.4f}")
assert all(mean > clean + 0.1 for mean, clean in seen), "not the loss of clean labels"
assert seen[2][0] > seen[1][0], "a larger margin costs more"
PY
