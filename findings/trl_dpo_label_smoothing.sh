#!/usr/bin/env bash
# DPOConfig takes label_smoothing with the default loss_type "sigmoid". From the papers it would be expected to be conservative
# DPO, as it was in trl before 0.29: at 0.3 the smallest loss is the entropy of (0.3, 0.7), 0.611 nats, and the margin
# stops where sigmoid(margin) is 0.7.
# It is ignored without a word: only "robust" and "exo_pair" read it. trl 1.16.0 with transformers 5.24.0. A configuration from
# before then trains plain DPO, whose margin grows with noise-free labels. Seen, loss before and after 40 steps on 4 pairs:
#   sigmoid, label_smoothing 0.0   0.6931  0.0000
#   sigmoid, label_smoothing 0.3   0.6931  0.0000
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0 datasets==5.2.0
export HF_HOME="$dir/hf" HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore
"$dir/venv/bin/python" - "$dir/run" <<'PY'
import sys

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer

datasets.disable_progress_bars()
words = [f"w{i}" for i in range(20)]
vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
words_only = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words_only, pad_token="<pad>", eos_token="<eos>")
pairs = datasets.Dataset.from_list([{"prompt": f"w{i}", "chosen": f" w{i + 4}", "rejected": f" w{i + 8}"} for i in range(4)])


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=23, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    )


seen = {}
for smoothing in (0.0, 0.3):
    trainer = DPOTrainer(
        model(),
        ref_model=model(),
        args=DPOConfig(
            sys.argv[1], label_smoothing=smoothing, beta=1.0, learning_rate=1e-2, max_steps=40, logging_steps=1,
            lr_scheduler_type="constant", per_device_train_batch_size=4, save_strategy="no",
            report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
        ),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    seen[smoothing] = losses
    print(f"sigmoid, label_smoothing {smoothing}   {losses[0]:.4f}  {losses[-1]:.4f}")
assert seen[0.0] == seen[0.3], "label_smoothing is ignored"
assert seen[0.3][-1] < 0.611, "below what conservative DPO can reach"
PY
