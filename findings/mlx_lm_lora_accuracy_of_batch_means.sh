#!/usr/bin/env bash
# mlx-lm-lora 5.10.2 reports "accuracies" of DPO, CPO and ORPO. Elsewhere (TRL, OpenRLHF, LLaMA-Factory) that is the share of
# pairs whose chosen reward is above the rejected one.
# Here DPO and CPO compare the two means over the batch: the figure of a batch is 0 or 1, and one pair with a large gap decides
# it for all. Its mean over an evaluation is the share of batches, and rises with the batch size where no pair changes.
# mlx 0.32.4 on the CPU. ORPO's is the share of pairs.
# Losses with few very negative margins look worse beside ORPO in the same program, and beside DPO in another. Seen:
#   dpo, three of four pairs right, the fourth far off: 0.0
#   dpo, the same four pairs in batches of one: 0.75
#   orpo, the same four pairs: 0.75
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet mlx-lm-lora==5.10.2 'mlx[cpu]==0.32.4'
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import mlx.core as mx
from mlx_lm_lora.trainer.cpo_trainer import cpo_loss
from mlx_lm_lora.trainer.dpo_trainer import dpo_loss
from mlx_lm_lora.trainer.orpo_trainer import orpo_loss

gaps = [1.0, 1.0, 1.0, -9.0]  # of the log-ratios; nats


def masks(count):
    return mx.ones((count, 11)), mx.ones((count, 11))


def of_dpo(gaps):
    zero = mx.zeros(len(gaps))
    return dpo_loss(mx.array(gaps) - 20, zero - 20, zero - 20, zero - 20, *masks(len(gaps)), beta=0.1, delta=50.0)[3]


def of_cpo(gaps):
    return cpo_loss(mx.array(gaps) - 20, mx.zeros(len(gaps)) - 20, *masks(len(gaps)), beta=0.1, delta=50.0)[3]


together = of_dpo(gaps)["accuracies"].item()
alone = sum(of_dpo([gap])["accuracies"].item() for gap in gaps) / len(gaps)
means = mx.array(gaps) / 10 - 2, mx.zeros(4) - 2  # ORPO takes means over tokens
orpo = orpo_loss(means[0], mx.array(0.0), means[1], mx.array(0.0), *masks(4), mx.ones(4))[3]["accuracies"].item()
print(f"dpo, three of four pairs right, the fourth far off: {together}")
print(f"dpo, the same four pairs in batches of one: {alone}")
print(f"orpo, the same four pairs: {orpo}")
assert (together, alone, orpo) == (0.0, 0.75, 0.75)
assert of_cpo(gaps)["accuracies"].item() == 0.0
PY
