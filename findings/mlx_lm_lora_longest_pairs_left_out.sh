#!/usr/bin/env bash
# mlx-lm-lora 5.10.2 batches preference pairs (dpo, cpo and orpo alike). Where the batch size does not divide their number, a
# trainer would be expected to leave out other pairs in each epoch, or a smaller batch at the end; an evaluation all of none.
# It sorts the pairs by the length of the chosen response, cuts batches from the short end, and shuffles whole batches. What
# is left over are always the longest ones: no step and no evaluation ever sees them, whatever the seed and the number of epochs.
# mlx 0.32.4 on the CPU, no warning.
# A run of N pairs in batches of 64 misses up to its 63 longest, and held-out figures leave out just the long responses on
# which losses with and without length normalisation differ. Seen, 10 pairs whose chosen responses have 1 to 10 tokens:
#   lengths in 200 batches of 4 for training   1 2 3 4 5 6 7 8
#   lengths in an evaluation                   1 2 3 4 5 6 7 8
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet mlx-lm-lora==5.10.2 'mlx[cpu]==0.32.4'
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import itertools

import numpy as np
from mlx_lm_lora.trainer.cpo_trainer import iterate_cpo_batches
from mlx_lm_lora.trainer.dpo_trainer import iterate_dpo_batches

ends = {"chosen_prompt_length": 1, "rejected_prompt_length": 1}  # one token of prompt
pairs = [{"chosen": [5] * (1 + length), "rejected": [5, 6], **ends} for length in range(1, 11)]


def lengths(batches):
    return sorted({int(length) for _, _, mask, _ in batches for length in np.array(mask).sum(1)})


for iterate in (iterate_dpo_batches, iterate_cpo_batches):
    np.random.seed(0)
    trained = lengths(itertools.islice(iterate(pairs, batch_size=4, max_seq_length=64, train=True), 200))
    evaluated = lengths(iterate(pairs, batch_size=4, max_seq_length=64))
    assert trained == evaluated == list(range(1, 9)), (trained, evaluated)
print("lengths in 200 batches of 4 for training  ", *trained)
print("lengths in an evaluation                  ", *evaluated)
PY
