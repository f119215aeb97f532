"""The command on trained runs: what transformers loads from the export, and where an export may not go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.callbacks.oracle_data import naive_logprob
from tests.evaluation.runs import inside, tiny_run, write_data
from tests.helpers.command import call
from tests.helpers.messages import names

TEXTS = ("w1 w2 w3", "w9  w8 <eos> w39")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with tied weights, checkpoints of steps 6 and 8."""
    home = tmp_path_factory.mktemp("export")
    write_data(home)
    return tiny_run(home, "callbacks.checkpoint.every=3", "model.tie_word_embeddings=true")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained an adapter."""
    pytest.importorskip("peft")
    home = tmp_path_factory.mktemp("adapted")
    write_data(home)
    return tiny_run(home, "adapter=lora", "adapter.rank=4")


def export(run: Path, *arguments: str, fails: int | None = None) -> Path:
    """Run the command in this process, from beside the run; the last folder named by ``to=``."""
    from caldpo.export import main

    with inside(run.parent):
        call(main, [run.name, *arguments], fails)
    places = [text.removeprefix("to=") for text in arguments if text.startswith("to=")]
    return run.parent / (places[-1] if places else f"outputs/exports/{run.name}")


def logprobs(model: PreTrainedModel) -> list[float]:
    """Of two responses, token by token from the logits."""
    return [float(naive_logprob(model.double(), [5, 6, 7], ids)) for ids in ([8, 9, 2], [12, 30, 11, 2])]


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def test_transformers_loads_the_trained_policy(trained: Path) -> None:
    """The log-probs are those of the last checkpoint's tensors in a model of their own."""
    folder = export(trained)
    model = AutoModelForCausalLM.from_config(loaded(folder).config)
    state = load_file(trained / "checkpoints/step-8/weights.safetensors")
    missing, unexpected = model.load_state_dict(
        {name.removeprefix("policy."): value for name, value in state.items()}, strict=False
    )
    assert len(missing) <= 1, "the tied weight alone is kept once"
    assert unexpected == []
    model.tie_weights()
    assert logprobs(loaded(folder)) == pytest.approx(logprobs(model.eval()), abs=1e-9)
    assert loaded(folder).config.tie_word_embeddings


def test_a_checkpoint_in_the_middle_has_its_own_weights(trained: Path) -> None:
    folder = export(trained, "checkpoint=step-6", "to=middle", "picture=false")
    saved = load_file(trained / "checkpoints/step-6/weights.safetensors")
    exported = loaded(folder).state_dict()
    for name, value in saved.items():
        assert torch.equal(exported[name.removeprefix("policy.")], value), name
    end = loaded(trained / "policy").state_dict()
    assert any(not torch.equal(exported[name], end[name]) for name in end)
    card = (folder / "README.md").read_text()
    names(card, "checkpoint", "8 steps")
    assert not (folder / "reward_dynamics.png").exists()


def test_tokenizer_template_and_generation_settings_come_along(trained: Path) -> None:
    folder = export(trained, "picture=false")
    own, exported = (AutoTokenizer.from_pretrained(place) for place in (trained.parent / "tokenizer", folder))
    messages = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    assert own.chat_template == exported.chat_template
    assert own.apply_chat_template(messages, tokenize=False) == exported.apply_chat_template(messages, tokenize=False)
    for text in TEXTS:
        assert own(text).input_ids == exported(text).input_ids
    settings = json.loads((folder / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["pad_token_id"]) == (own.eos_token_id, own.pad_token_id)


def test_small_shards_and_another_dtype(trained: Path) -> None:
    folder = export(trained, "to=shards", "max_shard_size=5KB", "dtype=bfloat16", "picture=false")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert (folder / "model.safetensors.index.json").is_file()
    full, small = loaded(trained / "policy").state_dict(), loaded(folder).state_dict()
    for name, value in full.items():
        assert torch.equal(small[name], value.to(torch.bfloat16)), name


def test_the_card_is_of_this_run_and_says_nothing_of_the_machine(trained: Path) -> None:
    folder = export(trained)
    card = (folder / "README.md").read_text()
    summary = json.loads((trained / "summary.json").read_text())
    chosen = summary["metrics"]["val/log_ratios/chosen"]
    for fact in (
        f"| chosen log-ratio | {chosen:.2f} |",
        "-logsigmoid(0.1 (a - b))",
        "https://arxiv.org/abs/2305.18290",
        "trained on: 40 pairs of 40 prompts",
        "python -m caldpo.train model=random",
        f"torch {torch.__version__}",
        "| optim.lr | 0.02 |",
    ):
        assert fact in card, fact
    assert (folder / "reward_dynamics.png").read_bytes().startswith(b"\x89PNG")
    assert "license" not in card.split("---")[1]
    for file in folder.iterdir():
        assert str(trained.parent).encode() not in file.read_bytes(), file.name


def test_an_adapter_alone_and_merged_are_one_policy(adapted: Path) -> None:
    from peft import PeftModel

    from tests.evaluation.runs import reference_model

    alone = export(adapted, "to=alone", "picture=false")
    whole = export(adapted, "to=whole", "merge=true", "picture=false")
    assert not (alone / "model.safetensors").exists()
    with inside(adapted.parent):
        base = reference_model()
        start = logprobs(base)
        expected = logprobs(PeftModel.from_pretrained(reference_model(), str(alone)).eval())
    assert logprobs(loaded(whole)) == pytest.approx(expected, abs=1e-5)
    assert logprobs(loaded(whole)) != pytest.approx(start, abs=1e-2), "training moved it"
    assert "library_name: peft" in (alone / "README.md").read_text()
    assert "library_name: transformers" in (whole / "README.md").read_text()


def test_a_merged_policy_is_summed_in_the_dtype_that_is_written(adapted: Path) -> None:
    """And not in that of a base in half precision, to be widened afterwards."""
    half = Path(shutil.copytree(adapted, adapted.parent / "half"))
    text = (half / "config.yaml").read_text()
    assert "  dtype: float32\n" in text
    (half / "config.yaml").write_text(text.replace("  dtype: float32\n", "  dtype: bfloat16\n"))
    folder = export(half, "to=wide", "merge=true", "dtype=float32", "picture=false")
    weights = loaded(folder).state_dict()
    assert {value.dtype for value in weights.values()} == {torch.float32}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(weights[name], weights[name].to(torch.bfloat16).float())


def test_nothing_but_an_export_is_written_over(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = trained.parent / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years")
    for to in ("foreign", "run", "run/policy", ".", "train.jsonl"):
        export(trained, f"to={to}", fails=2)
        names(capsys.readouterr().err, f"to={to}", remedy="to=exports/NAME")
    assert (foreign / "thesis.tex").read_text() == "years"
    folder = export(trained, "to=again", "picture=false")
    (folder / "old.txt").write_text("of the earlier one")
    export(trained, "to=again", "picture=false")
    assert not (folder / "old.txt").exists()
    export(trained, "merge=true", "to=none", fails=1)
    names(capsys.readouterr().err, "merge=True", "no adapter")
    assert not (trained.parent / "none").exists()
