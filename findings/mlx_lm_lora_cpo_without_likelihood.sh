#!/usr/bin/env bash
# mlx-lm-lora 5.10.2, train mode cpo and loss type dpop. CPO (arXiv 2401.08417, Eq. 4) is the contrast of the two log-probs plus the
# negative log-likelihood of the chosen response; DPO-Positive (arXiv 2402.13228, Eq. 3) has its penalty within the sigmoid,
# -log sigmoid(beta (margin - delta max(0, -a))), so that a pair that is won by far costs nothing.
# CPO has no likelihood, and no argument that would add one: of a pair that is won by far the chosen response gets no gradient.
# DPOP's penalty stands outside the sigmoid and beta: each nat below the reference costs delta, whatever the margin. The default
# delta is the paper's, 50. mlx 0.32.4 on the CPU.
# Figures of these two are not those of the methods of that name: what is called CPO is SLiC-like contrast alone, whose chosen
# responses may fall, and DPOP at its published setting is a penalty with a little DPO in it. Seen, derivative of the loss by
# the chosen log-prob, of a pair won by 500 nats whose chosen log-ratio is -1:
#   cpo, as published beside measured:  -1.0   0.0
#   dpop, as published beside measured:  0.0 -50.0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet mlx-lm-lora==5.10.2 'mlx[cpu]==0.32.4'
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import inspect

import mlx.core as mx
import mlx.nn as nn
from mlx_lm_lora.trainer.cpo_trainer import CPOTrainingArgs, cpo_loss
from mlx_lm_lora.trainer.dpo_trainer import DPOTrainingArgs, dpo_loss

mask, zero, rejected, beta = mx.ones((1, 11)), mx.zeros(1), mx.array([-501.0]), 0.1
delta = DPOTrainingArgs().delta
assert delta == 50.0


def derivative(loss):
    return mx.grad(loss)(mx.array([-1.0])).item()


def published_cpo(chosen):
    return mx.mean(-nn.log_sigmoid(beta * (chosen - rejected)) - chosen)


def published_dpop(chosen):
    return mx.mean(-nn.log_sigmoid(beta * (chosen - rejected - delta * mx.maximum(0.0, -chosen))))


cpo = derivative(lambda chosen: cpo_loss(chosen, rejected, mask, mask, beta, delta)[0])
dpop = derivative(lambda chosen: dpo_loss(chosen, rejected, zero, zero, mask, mask, beta, delta, "dpop")[0])
print(f"cpo, as published beside measured:  {derivative(published_cpo):.1f}   {abs(cpo):.1f}")
print(f"dpop, as published beside measured:  {abs(derivative(published_dpop)):.1f} {dpop:.1f}")
assert abs(derivative(published_cpo) + 1) < 1e-3 and abs(cpo) < 1e-3
assert abs(derivative(published_dpop)) < 1e-3 and abs(dpop + 50) < 1e-3
names = {*inspect.signature(cpo_loss).parameters, *(f for f in CPOTrainingArgs.__dataclass_fields__)}
assert not [name for name in names if any(word in name for word in ("nll", "sft", "alpha", "lambda"))], names
PY
