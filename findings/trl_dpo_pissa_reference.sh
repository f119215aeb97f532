#!/usr/bin/env bash
# A new LoRA adapter leaves the policy's outputs as they are, so without a ref_model DPOTrainer takes the policy with its
# adapter switched off as the reference: before the first step the loss is log 2 and all rewards are 0.
# With init_lora_weights "pissa" or "olora" the outputs are unchanged at the start, too, but PEFT moves a part of each base
# weight into the adapter. With the adapter off, only the rest of the model is left, and TRL takes that as the reference.
# peft 0.21.2, trl 1.16.0, no warning. A comparison of initialisations then compares references as well: what the loss keeps
# the policy close to is not the model it starts from. A copy of that model as ref_model avoids it.
# Seen before any step (on, off: largest difference of a logit to the initial model's, adapter on and off):
#   default   no ref_model    logit on 0.000 off 0.000  loss 0.6931  rewards/chosen  0.0000
#   pissa     no ref_model    logit on 0.000 off 5.748  loss 0.7572  rewards/chosen  0.0638
#   olora     no ref_model    logit on 0.000 off 4.677  loss 0.7090  rewards/chosen  0.0941
#   pissa     with ref_model  logit on 0.000 off 5.748  loss 0.6931  rewards/chosen  0.0000
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0 peft==0.21.2 datasets==5.2.0
export HF_HOME="$dir/hf" HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore
"$dir/venv/bin/python" - "$dir/run" <<'PY'
import copy
import math
import random
import sys

import datasets
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer

datasets.disable_progress_bars()
words = [f"w{i}" for i in range(60)]
vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", *words])}
words_only = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words_only, pad_token="<pad>", eos_token="<eos>")
draw = random.Random(1)


def text(length: int) -> str:
    return " " + " ".join(draw.choices(words, k=length))


pairs = datasets.Dataset.from_list([{"prompt": text(4), "chosen": text(6), "rejected": text(6)} for _ in range(8)])
torch.manual_seed(1)
shape = LlamaConfig(
    vocab_size=62, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.2
)
initial = LlamaForCausalLM(shape).eval()
ids = torch.arange(2, 42)[None]
seen = {}
for name, with_ref in ((True, False), ("pissa", False), ("olora", False), ("pissa", True)):
    trainer = DPOTrainer(
        copy.deepcopy(initial),
        ref_model=copy.deepcopy(initial) if with_ref else None,
        args=DPOConfig(sys.argv[1], report_to="none", use_cpu=True, bf16=False, disable_tqdm=True),
        train_dataset=pairs,
        eval_dataset=pairs,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights=name),
    )
    trainer.remove_callback(PrinterCallback)
    policy = trainer.model.eval()
    with torch.no_grad():
        wanted = initial(ids).logits
        on = (policy(ids).logits - wanted).abs().max().item()
        with policy.disable_adapter():
            off = (policy(ids).logits - wanted).abs().max().item()
    measured = trainer.evaluate()  # before any step
    seen[name, with_ref] = (on, off, measured["eval_loss"], measured["eval_rewards/chosen"])
    print(
        f"{'default' if name is True else name:9} {'with' if with_ref else 'no'} ref_model".ljust(25),
        "logit on {:.3f} off {:.3f}  loss {:.4f}  rewards/chosen {:7.4f}".format(*seen[name, with_ref]),
    )
for (name, with_ref), (on, off, loss, reward) in seen.items():
    is_initial = abs(loss - math.log(2)) < 1e-4 and abs(reward) < 1e-4
    assert on < 1e-3, "the policy starts as the initial model"
    assert (off < 1e-3) == (name is True), "only the default leaves the base weights alone"
    assert is_initial == (name is True or with_ref), "the reference"
PY
