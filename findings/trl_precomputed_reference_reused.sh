#!/usr/bin/env bash
# DPOTrainer with precompute_ref_log_probs=True keeps the reference's log-probs in the cache folder of the dataset. A run with
# another max_length, or another ld_alpha (LD-DPO's weight of the longer response's tail), would be expected to compute them
# anew: both change what is summed over a response.
# The cached file is named after the dataset's fingerprint and the reference's weights. With truncation_mode "keep_end" the
# fingerprint depends on neither setting, so the second run reads the first one's log-probs. trl 1.16.0, no warning.
# In a sweep over either setting all runs but the first optimise against a wrong reference; the loss before the first step,
# when policy and reference are the same model, shows it: it must be log 2 = 0.6931, and the rewards 0. Seen there:
#   first run    max_length 64  ld_alpha None  loss 0.6931  rewards/chosen  0.0000
#   same cache   max_length 16  ld_alpha None  loss 0.6348  rewards/chosen  1.6641
#   new cache    max_length 16  ld_alpha None  loss 0.6931  rewards/chosen  0.0000
#   same cache   max_length 64  ld_alpha 0.5   loss 0.6197  rewards/chosen  0.9697
#   new cache    max_length 64  ld_alpha 0.5   loss 0.6931  rewards/chosen  0.0000
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0 datasets==5.2.0
export HF_HOME="$dir/hf" HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import json
import math
import random
from pathlib import Path

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer

datasets.disable_progress_bars()
words = [f"w{i}" for i in range(60)]
vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", *words])}
words_only = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
draw = random.Random(1)


def text(length: int) -> str:
    return " " + " ".join(draw.choices(words, k=length))


rows = [
    {"prompt": text(20), "chosen": text(draw.randint(5, 20)), "rejected": text(draw.randint(5, 20))} for _ in range(8)
]
Path("pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def at_start(cache: str, max_length: int | None, ld_alpha: float | None) -> tuple[float, float]:
    pairs = datasets.load_dataset("json", data_files="pairs.jsonl", split="train", cache_dir=cache)
    torch.manual_seed(1)
    shape = LlamaConfig(
        vocab_size=62, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.2
    )
    trainer = DPOTrainer(
        LlamaForCausalLM(shape),
        args=DPOConfig(
            "run", precompute_ref_log_probs=True, truncation_mode="keep_end", max_length=max_length, ld_alpha=ld_alpha,
            report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
        ),
        train_dataset=pairs,
        eval_dataset=pairs,
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words_only, pad_token="<pad>", eos_token="<eos>"),
    )
    trainer.remove_callback(PrinterCallback)
    measured = trainer.evaluate()
    return measured["eval_loss"], measured["eval_rewards/chosen"]


for title, cache, max_length, ld_alpha, right in (
    ("first run", "one", 64, None, True),
    ("same cache", "one", 16, None, False),
    ("new cache", "two", 16, None, True),
    ("same cache", "one", 64, 0.5, False),
    ("new cache", "three", 64, 0.5, True),
):
    loss, reward = at_start(cache, max_length, ld_alpha)
    print(f"{title:12} max_length {max_length}  ld_alpha {ld_alpha!s:5} loss {loss:.4f}  rewards/chosen {reward:7.4f}")
    assert (abs(loss - math.log(2)) < 1e-5 and abs(reward) < 1e-5) == right
PY
