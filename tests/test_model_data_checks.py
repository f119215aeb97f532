"""Token ids beyond the embedding and rows beyond the positions are refused before weights load, with both numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from caldpo.estimate import main as estimate
from caldpo.models.position_limit import position_limit
from tests.evaluation.runs import evaluate
from tests.helpers.command import call, train
from tests.helpers.messages import names
from tests.helpers.tiny import VOCABULARY, tiny_model, tiny_tokenizer

POSITIONS = 24
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
OLD = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": POSITIONS}
LEARNED = {
    "gpt2": OLD,
    "ctrl": OLD | {"dff": 16},
    "codegen": OLD | {"rotary_dim": 4},
    "gptj": OLD | {"rotary_dim": 4},
    "gpt_neo": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]},
    "opt": SIZES | {"ffn_dim": 16, "word_embed_proj_dim": 16},
    "biogpt": SIZES,
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": POSITIONS},
}
COMPUTED = {
    "llama": SIZES,
    "gpt_neox": SIZES,
    "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2},
    "xglm": {"d_model": 16, "num_layers": 1, "attention_heads": 2, "ffn_dim": 16},
}


def without_weights(kind: str, sizes: dict[str, Any]) -> PreTrainedModel:
    named = {} if {"n_positions", "max_seq_len"} & set(sizes) else {"max_position_embeddings": POSITIONS}
    config = AutoConfig.for_model(kind, vocab_size=44, bos_token_id=1, eos_token_id=2, pad_token_id=0, **named, **sizes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", [*LEARNED, *COMPUTED])
def test_a_table_of_positions_has_an_end_and_a_formula_has_none(kind: str) -> None:
    model = without_weights(kind, LEARNED.get(kind) or COMPUTED[kind])
    assert position_limit(model, POSITIONS) is None
    assert position_limit(model, POSITIONS + 1) == (POSITIONS if kind in LEARNED else None)
    assert position_limit(model, 10 * POSITIONS) == (POSITIONS if kind in LEARNED else None)


def test_a_model_with_weights_is_asked_without_them() -> None:
    model = tiny_model("gpt2")
    assert position_limit(model, 1024) is None
    assert position_limit(model, 1025) == 1024
    assert model.device.type == "cpu"


HUB = [
    "model=zephyr",
    "model.path=model",
    "trainer=cpu",
    "trainer.precision=32-true",
    "model.gradient_checkpointing=false",
    "data=local",
    "data.train=pairs.jsonl",
    "data.micro_batch_size=4",
    "trainer.accumulate_grad_batches=1",
    "trainer.max_steps=1",
    "trainer.progress_bar=false",
    "logger=csv",
    "callbacks.samples.max_new_tokens=2",
]


def model_folder(kind: str = "llama", **changes: Any) -> Any:
    """A model in ``model/`` with the tokenizer of ``tokenizer/``, which the caller may change."""
    sizes = dict(LEARNED.get(kind) or SIZES) | {"vocab_size": VOCABULARY} | changes
    config = AutoConfig.for_model(kind, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained("model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    tokenizer.save_pretrained("model")
    return tokenizer


def refused(capsys: pytest.CaptureFixture[str], *overrides: str, main: Any = None) -> str:
    capsys.readouterr()
    if main is None:
        train(*HUB, *overrides, "hydra.run.dir=run", fails=1)
    else:
        call(main, [*HUB, *overrides, "hydra.run.dir=other"], 1)
    return " ".join(capsys.readouterr().err.split())


def test_tokens_that_the_embedding_has_no_row_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = model_folder()
    for file in Path("model").glob("*.safetensors"):
        file.unlink()  # nothing of them is needed to see it
    tokenizer.add_tokens(["w44", "<|turn|>"])
    tokenizer.save_pretrained("model")
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    rows[3]["chosen"] += " w44"
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for main in (None, estimate):
        said = refused(capsys, main=main)
        names(said, "error: model.path=model:", "pairs.jsonl:4", "w44", "id 44", "44 rows")
        names(said, remedy=("resize_token_embeddings(46)", "model.tokenizer"))


def test_tokens_of_a_template_and_of_padding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = model_folder()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained("other")
    said = refused(capsys, "model.tokenizer=other")
    names(said, "model.tokenizer=other:", "pad_token", "[PAD]", "id 44")
    tokenizer = model_folder()
    tokenizer.add_tokens(["<|turn|>"])
    tokenizer.chat_template = "{% for m in messages %}{{ '<|turn|> ' + m['content'] + ' ' }}{% endfor %}"
    tokenizer.save_pretrained("model")
    turn = [[{"role": "user", "content": f"w1 w{i}"}] for i in range(10)]
    sides = {side: [{"role": "assistant", "content": word}] for side, word in (("chosen", "w9"), ("rejected", "w8"))}
    Path("pairs.jsonl").write_text("".join(json.dumps({"prompt": t, **sides}) + "\n" for t in turn))
    names(refused(capsys), "<|turn|>", "id 44", "chat template")


def test_rows_and_samples_beyond_the_positions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_folder("gpt2")
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    rows[5]["rejected"] = " w1" * 24
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for main in (None, estimate):
        said = refused(capsys, "data.max_length=40", "data.max_prompt_length=10", main=main)
        names(
            said, "data.max_length=40:", "pairs.jsonl:6", "28 tokens", "positions for 24", remedy="data.max_length=24"
        )
    fits = ["data.max_length=24", "data.max_prompt_length=10"]
    said = refused(capsys, *fits, "callbacks.samples.max_new_tokens=22")
    names(said, "callbacks.samples.max_new_tokens=22:", "positions for 24")
    said = refused(capsys, *fits, "rollouts=reward_model", "rollouts.max_new_tokens=22")
    names(said, "rollouts.max_new_tokens=22:", "positions for 24")
    capsys.readouterr()
    data = ["data=local", "data.train=pairs.jsonl", "data.max_length=40", "data.max_prompt_length=10"]
    evaluate("model.path=model", "suite=preference", "reference.path=model", *data, "output=seen", fails=1)
    said = " ".join(capsys.readouterr().err.split())
    names(said, "data.max_length=40:", "positions for 24")


def test_what_a_stream_may_hold_later(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its first rows are short, and of tokens that the model has."""
    tokenizer = model_folder("gpt2")
    pairs = Path("pairs.jsonl").read_text()
    Path("test.jsonl").write_text(pairs.replace('"prompt": "', '"prompt": "w9 w9 '))
    streamed = ["data.streaming=true", "data.test=test.jsonl", "callbacks.samples.prompts=0"]
    fits = ["data.max_length=24", "data.max_prompt_length=10"]
    said = refused(capsys, *streamed, "data.max_length=25", "data.max_prompt_length=10")
    names(said, "data.max_length=25:", "may be 25 tokens", "positions for 24", remedy="data.max_length=24")
    train(*HUB, *streamed, *fits, "hydra.run.dir=fits")
    tokenizer.add_tokens(["w44", "<|turn|>"])
    tokenizer.save_pretrained("model")
    said = refused(capsys, *streamed, *fits)
    names(said, "error: model.path=model:", "<|turn|>", "id 45", "44 rows", remedy="resize_token_embeddings(46)")
    train(*HUB, "data.test=test.jsonl", "callbacks.samples.prompts=0", *fits, "hydra.run.dir=whole")


def test_another_reference_is_held_against_the_pairs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_folder("gpt2")
    Path("model").rename("reference")
    model_folder()
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    rows[5]["chosen"] = " w1" * 24
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(capsys, "reference=frozen", "reference.path=reference", "reference.distinct=true")
    names(said, "GPT2LMHeadModel", "positions for 24")
