"""A tiny model of each family is trained by the command and exported; transformers computes what the run logged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.command import RANDOM_MODEL, SIDES, train

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "smollm3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_export_gives_the_log_probs_of_the_trained_policy(family: str, folder: Path) -> None:
    train(
        *RANDOM_MODEL,
        f"model.architecture={family}",
        "loss=dpo",
        "optim.lr=0.01",
        "trainer.max_steps=2",
        "trainer.progress_bar=false",
        "callbacks.samples.max_new_tokens=1",
        "logger=csv",
        "data.test=pairs.jsonl",
        "data.on_shared_prompts=keep",
        "hydra.run.dir=run",
    )
    model = AutoModelForCausalLM.from_pretrained("run/policy")
    # the one it was trained with: beside a Qwen 2 transformers builds that family's tokenizer, whatever the folder says
    tokenizer = AutoTokenizer.from_pretrained("tokenizer")
    logged = json.loads(Path("run/summary.json").read_text())["metrics"]
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    for side in SIDES:
        values = []
        for row in rows:
            prompt = tokenizer(row["prompt"]).input_ids
            response = [*tokenizer(row[side]).input_ids, tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + response])).logits[0].double()
            message = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            values.append(sum(message[i, token].item() for i, token in enumerate(response)))
        assert sum(values) / len(values) == pytest.approx(logged[f"val/logps/{side}"], rel=1e-5)
    # training moved the policy by more than the tolerance, so that an export of the start would be noticed
    assert abs(logged["val/log_ratios/chosen"]) > 1e-3 * abs(logged["val/logps/chosen"])
