"""The command from its overrides to estimate.json, against the run that it speaks of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from caldpo.data.sources.imdb import ImdbSentiment
from caldpo.estimate import main
from caldpo.estimation.memory_breakdown import reference_mode_of
from caldpo.lightning_trainer import TrainerSettings
from caldpo.models.hub_model import HubModel
from caldpo.models.random_init import RandomModel
from caldpo.models.tabular_model import TabularModel
from caldpo.reference.auto_reference import Auto
from caldpo.reference.frozen_model import Frozen
from caldpo.reference.precomputed import Precomputed
from tests.helpers.command import train
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model, tiny_tokenizer

SMALL = [
    "model=random",
    "model.tokenizer=tokenizer",
    "model.hidden_size=16",
    "data=local",
    "data.train=pairs.jsonl",
    "data.micro_batch_size=4",
    "callbacks.samples.max_new_tokens=4",
    "trainer.progress_bar=false",
    "logger=csv",
]


def estimated(*overrides: str, folder: str = "estimate") -> dict[str, Any]:
    main([*SMALL, *overrides, f"hydra.run.dir={folder}"])
    return json.loads(Path(folder, "estimate.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        ["trainer.max_epochs=2"],  # 24 pairs, of which the split by prompt holds some out
        ["trainer.accumulate_grad_batches=2", "trainer.max_epochs=2"],
        ["trainer.max_steps=5"],
        ["data.max_train_pairs=10", "data.drop_last=true"],
        ["data.max_train_pairs=10", "trainer.accumulate_grad_batches=2"],
        ["data.max_tokens_per_micro_batch=30", "trainer.max_epochs=2"],
    ],
)
def test_steps_are_those_of_the_run(folder: Path, changes: list[str]) -> None:
    result = estimated(*changes)
    train(*SMALL, *changes, "hydra.run.dir=run")
    summary = json.loads(Path("run/summary.json").read_text())
    assert result["steps"] == summary["steps"]
    assert result["pairs"] == summary["data"]["train"]["pairs"]
    assert result["truncated"]["prompts"] == summary["data"]["train"]["truncated"]["prompt"]
    assert result["exact"] == {"tokens": True, "steps": True}


def test_layout_and_micro_batches_are_those_of_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packed where the model can, also by a budget; the same steps in more micro-batches than pairs alone make."""
    built: list[int] = []
    build = TrainerSettings.build

    def noting(
        settings: TrainerSettings, run_dir: Path, loggers: Any, callbacks: Any, accumulation: int, steps: Any
    ) -> Any:
        built.append(accumulation)
        return build(settings, run_dir, loggers, callbacks, accumulation, steps)

    monkeypatch.setattr(TrainerSettings, "build", noting)
    cases = {
        "packed": [],
        "padded": ["layout=padded"],
        "packed, budget": ["data.max_tokens_per_micro_batch=20"],
        "padded, budget": ["data.max_tokens_per_micro_batch=30", "layout=padded"],
    }
    result: dict[str, dict[str, Any]] = {}
    for number, (name, keys) in enumerate(cases.items()):
        result[name] = made = estimated(*keys, folder=f"estimate{number}")
        capsys.readouterr()
        train(*SMALL, *keys, f"hydra.run.dir=run{number}")
        layout = name.split(",")[0]
        assert made["layout"] == layout
        assert f"layout: {layout} (" in capsys.readouterr().out
        assert made["micro_batches_per_epoch"] == built[-1] * made["steps_per_epoch"]
        assert made["largest_micro_batch"]["tokens"] <= {"packed, budget": 20, "padded, budget": 30}.get(name, 1000)
    assert len({made["steps"] for made in result.values()}) == 1
    assert built[:2] == [1, 1]
    assert min(built[2:]) > 1
    computed = {name: made["tokens_per_epoch"]["computed"] for name, made in result.items()}
    data = result["packed"]["tokens_per_epoch"]
    assert computed["packed"] == data["prompt"] + data["response"]
    assert computed["packed, budget"] >= computed["packed"]  # a last step of few pairs is filled up
    assert computed["padded"] >= 2 * data["prompt"] + data["response"]
    small, large = (
        result[name]["memory_bytes"]["activations kept for backward"] for name in ("packed, budget", "packed")
    )
    assert small < 0.6 * large  # of 20 tokens and of 40


def test_auto_is_padded_where_a_window_is_shorter_than_the_longest_pair(folder: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model("mistral", vocab_size=44, sliding_window=64, **sizes)
    config.save_pretrained("policy")
    tiny_tokenizer().save_pretrained("policy")
    keys = ["model=zephyr", "model.path=policy", "trainer=cpu", *SMALL[3:], "hydra.run.dir=window"]
    for longest, layout in ((128, "padded"), (64, "packed")):
        main([*keys, f"data.max_length={longest}", "data.max_prompt_length=32"])
        assert json.loads(Path("window/estimate.json").read_text())["layout"] == layout


def test_parameters_and_bytes_are_those_of_the_run(folder: Path) -> None:
    result = estimated("reference=frozen", "optim=adamw", "loss=dpo")
    train(*SMALL, "trainer.max_steps=1", "hydra.run.dir=run", "callbacks.checkpoint.every=1")
    policy = AutoModelForCausalLM.from_pretrained("run/policy")
    size = sum(p.nbytes for p in policy.parameters())
    (checkpoint,) = Path("run/checkpoints").glob("step-1/training.pt")
    (optimizer,) = torch.load(checkpoint, weights_only=True)["optimizer_states"]
    state = sum(v.nbytes for s in optimizer["state"].values() for v in s.values() if isinstance(v, torch.Tensor))
    memory = result["memory_bytes"]
    assert result["parameters"] == result["trainable"] == policy.num_parameters()
    assert memory["gradients"] == size
    assert memory["optimiser state"] == state
    assert memory["policy: weights"] == pytest.approx(size, rel=0.01)  # and a few rotary frequencies
    assert memory["reference: weights"] == memory["policy: weights"]
    assert memory["total"] == sum(v for k, v in memory.items() if k != "total")
    assert result["fits"] is True


def test_a_dry_run_prints_the_same_estimate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(*SMALL, "dry_run=true", "hydra.run.dir=dry")
    output = capsys.readouterr().out
    result = estimated()
    dry = json.loads(Path("dry/estimate.json").read_text())
    for either in (dry, result):  # what is free on a machine moves from one moment to the next
        for key in ("device_bytes", "verdict"):
            either.pop(key)
    assert dry == result
    names(output, "Estimate", "fits", "GiB")
    assert not Path("dry/metrics.csv").exists()


def test_no_weights_are_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save_pretrained("policy")
    tiny_tokenizer().save_pretrained("policy")
    Path("policy/model.safetensors").unlink()  # the configuration alone is there

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    keys = ["data.micro_batch_size=2", "reference=frozen", "reference.path=policy", "trainer.max_steps=7"]
    main(["model=zephyr", "model.path=policy", "trainer=cpu", *SMALL[3:5], *keys, "logger=none", "hydra.run.dir=hub"])
    result = json.loads(Path("hub/estimate.json").read_text())
    assert result["parameters"] == tiny_model().num_parameters()
    assert result["memory_bytes"]["reference: weights"] > 0
    assert result["steps"] == 7


def test_lora_trains_little(folder: Path) -> None:
    pytest.importorskip("peft")
    full, lora = estimated(), estimated("adapter=lora", "adapter.rank=2", folder="lora")
    assert lora["parameters"] == full["parameters"] + lora["trainable"]
    assert lora["memory_bytes"]["gradients"] == lora["trainable"] * 4 < full["memory_bytes"]["gradients"]


def test_a_sample_is_scaled_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, part = estimated(), estimated("sample_pairs=8", folder="part")
    assert (part["sampled_pairs"], part["pairs"]) == (8, whole["pairs"])
    assert part["exact"] == {"tokens": False, "steps": False}
    assert part["steps"] == whole["steps"]
    assert part["tokens_per_epoch"]["prompt"] == pytest.approx(whole["tokens_per_epoch"]["prompt"], rel=0.2)
    names(capsys.readouterr().out, f"~{part['pairs']}", "8 of them")
    capped = estimated("sample_pairs=8", "data.max_train_pairs=12", folder="capped")
    assert capped["pairs"] == 12


def test_too_little_memory_is_a_verdict_and_no_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = estimated("memory_gib=0.0001")
    assert result["fits"] is False
    output = capsys.readouterr().out
    names(output, "does not fit", "memory_gib", "data.micro_batch_size=2 trainer.accumulate_grad_batches=2")
    main([*SMALL, "console=compact", "hydra.run.dir=line"])
    assert capsys.readouterr().out.startswith("line: fits")


def test_mistakes_are_those_of_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = []
    for command in (main, lambda words: train(*words)):
        with pytest.raises(SystemExit) as stopped:
            command([*SMALL, "data.train=pears.jsonl", "hydra.run.dir=bad"])
        assert stopped.value.code == 2  # before anything is loaded
        errors.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")])
    assert errors[0] == errors[1]
    names(errors[0][0], "pairs.jsonl", key="data.train", value="pears.jsonl")
    with pytest.raises(SystemExit) as stopped:
        main([*SMALL, "dry_run=false"])
    assert stopped.value.code == 2
    names(capsys.readouterr().err, "true", key="dry_run", value="false")


def test_pairs_that_a_model_has_yet_to_make(folder: Path) -> None:
    from caldpo.estimation.step_schedule import refuse_ungenerated

    class Data:
        source = ImdbSentiment("reviews", policy="p", classifier="c", cache_dir="cache")
        train, test = "train", None

    with refused("language model", key="data.train", value="train", remedy="run"):
        refuse_ungenerated(Data)  # type: ignore[arg-type]
    file = Data.source.cache_file("train")
    file.parent.mkdir(parents=True)
    file.touch()
    refuse_ungenerated(Data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "needed", "seen", "mode"),
    [
        (Frozen(), True, 100, "frozen"),
        (Precomputed(), True, 1, "precomputed"),
        (Auto(), True, 100, "precomputed"),
        (Auto(), True, 10, "frozen"),
        (Auto(), False, 10, "precomputed"),
    ],
)
def test_reference_mode(source: Any, needed: bool, seen: int, mode: str) -> None:
    assert reference_mode_of(source, tiny_model(), needed, pairs=100, pairs_seen=seen) == mode


@pytest.mark.parametrize("kind", ["hub", "random", "tabular"])
def test_a_skeleton_is_the_policy_without_its_weights(folder: Path, kind: str) -> None:
    tiny_model().save_pretrained("policy")
    sources: dict[str, Any] = {
        "hub": HubModel("policy", gradient_checkpointing=True),
        "random": RandomModel("tokenizer", "qwen3", hidden_size=16),
        "tabular": TabularModel(3, 5, 0, 1.0),
    }
    skeleton, policy = sources[kind].skeleton(), sources[kind].load_policy()
    shapes = {name: (p.shape, p.dtype) for name, p in policy.named_parameters()}
    assert {name: (p.shape, p.dtype) for name, p in skeleton.named_parameters()} == shapes
    assert skeleton.is_gradient_checkpointing == policy.is_gradient_checkpointing


def test_an_answer_needs_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from caldpo.estimate import main\n"
        "for words in (['--help'], ['los=dpo'], ['sample_pairs=0']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "print(*[m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == ""
    assert "python -m caldpo.estimate" in done.stdout
    first, second = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    names(first, "loss", key="los")
    names(second, "> 0", key="sample_pairs", value=0)


def test_it_names_the_budget_of_the_run_and_whose_activations_are_recomputed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("caldpo.estimation.token_budget.NEGLIGIBLE", 0)
    monkeypatch.setattr("caldpo.estimation.token_budget.SATURATING", {"cpu": 8})
    result = estimated()
    out = " ".join(capsys.readouterr().out.split())
    cut = result["micro_batches"]
    assert (cut["most_tokens"], cut["recompute_above"]) == (8, 8)
    names(cut["reason"], "CPU")
    assert cut["recomputed_share"] == 1, "every pair has more"
    names(out, "within 8 tokens", f"{cut['recomputed_share']:.0%} of the tokens")
    assert result["flops"]["recompute"] > 0
    train(*SMALL, "hydra.run.dir=run")
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["max_tokens_per_micro_batch"], summary["recompute_above"]) == (8, 8)
    kept = estimated("model.gradient_checkpointing=false", folder="kept")
    assert kept["micro_batches"]["recompute_above"] is None
    assert kept["flops"]["recompute"] == 0
    part = "activations kept for backward"
    assert result["memory_bytes"][part] < kept["memory_bytes"][part]


def test_of_a_stream_it_says_that_its_length_is_not_known(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = ["data.streaming=true", "data.test=pairs.jsonl", "data.on_shared_prompts=keep", "trainer.max_steps=40"]
    result = estimated(*stream)
    out = " ".join(capsys.readouterr().out.split())
    assert result["streaming"]
    assert result["exact"] == {"tokens": False, "steps": True}
    names(out, "a stream of unknown length", f"first {result['sampled_pairs']}", "40 (~160 pairs)")
    assert "all tokenised" not in out
    assert "per epoch" not in out
