#!/usr/bin/env bash
# DPOTrainer reports eval_loss and eval_rewards/* of one pass over the held-out pairs. Both would be expected to be means over
# the pairs, so that the evaluation batch size changes neither.
# eval_loss is one. eval_rewards/*, the accuracy among them, are means over the batches of each batch's mean: in a last,
# incomplete batch one pair weighs as much as a whole batch elsewhere. trl 1.16.0 with transformers 5.24.0.
# Runs that were evaluated with different batch sizes cannot be compared by them; with one size for all, the pairs at the end
# of the file still count for more. Which of two policies has the better margin can depend on it. Seen with 5 pairs, the same
# for batch sizes 5 and 1:
#   batch size 5  policy A  eval_loss 0.6727  accuracy 0.600  margin  0.0628
#   batch size 5  policy B  eval_loss 0.6808  accuracy 0.600  margin  0.1921
#   batch size 4  policy A  eval_loss 0.6727  accuracy 0.375  margin -0.0620
#   batch size 4  policy B  eval_loss 0.6808  accuracy 0.375  margin -0.3545
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0 datasets==5.2.0
export HF_HOME="$dir/hf" HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore
"$dir/venv/bin/python" - "$dir/run" <<'PY'
import random
import sys

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer

datasets.disable_progress_bars()
words = [f"w{i}" for i in range(60)]
vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
words_only = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words_only, pad_token="<pad>", eos_token="<eos>")
draw = random.Random(1)


def text(length: int) -> str:
    return " " + " ".join(draw.choice(words) for _ in range(length))


pairs = datasets.Dataset.from_list([{"prompt": text(4), "chosen": text(6), "rejected": text(6)} for _ in range(5)])


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=63, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            initializer_range=0.2,
        )
    )


seen = {}
for batch_size in (5, 1, 4):
    for policy, seed in (("A", 4), ("B", 8)):
        trainer = DPOTrainer(
            model(seed),
            ref_model=model(0),
            args=DPOConfig(
                sys.argv[1], per_device_eval_batch_size=batch_size,
                report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
            ),
            train_dataset=pairs,
            eval_dataset=pairs,
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        measured = trainer.evaluate()
        values = [measured[f"eval_{name}"] for name in ("loss", "rewards/accuracies", "rewards/margins")]
        seen[batch_size, policy] = torch.tensor(values)
        print(
            f"batch size {batch_size}  policy {policy}",
            " eval_loss {:.4f}  accuracy {:.3f}  margin {:7.4f}".format(*values),
        )
for policy in "AB":
    assert torch.allclose(seen[5, policy], seen[1, policy], atol=1e-4)
    assert torch.allclose(seen[5, policy][0], seen[4, policy][0], atol=1e-4), "the loss is a mean over pairs"
    assert (seen[5, policy][1:] - seen[4, policy][1:]).abs().min() > 0.05, "the rewards are not"
assert seen[5, "B"][2] > seen[5, "A"][2] and seen[4, "B"][2] < seen[4, "A"][2]
PY
