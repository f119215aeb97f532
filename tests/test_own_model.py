"""``model=hf``: what it trains with, what ``auto`` stands for, and what is said of it before the first step."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from caldpo.console import adapter_rate_note, print_clipping, recipe_note
from caldpo.lightning_trainer import TrainerSettings
from caldpo.models.adapted_policy import count_parameters
from caldpo.models.adapters import Lora
from caldpo.resume.config_diff import differences
from caldpo.utils.devices import resolve_accelerator, resolve_precision
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.helpers.tiny import tiny_model
from tests.road.folders import write_model, write_rows
from tests.test_configs import composed

OWN = ["model=hf", "model.path=folder", "data.train=train.jsonl"]


@pytest.mark.parametrize(
    ("overrides", "lr"),
    [
        *[([], 5e-7), (["adapter=lora"], 5e-6), (["adapter=qlora"], 5e-6), (["optim.lr=1e-4"], 1e-4)],
        *[(["loss=sft"], 2e-5), (["loss=sft", "adapter=lora"], 2e-4), (["adapter=lora", "optim.lr=1e-4"], 1e-4)],
    ],
)
def test_learning_rates(overrides: list[str], lr: float) -> None:
    """Those of the alignment-handbook for zephyr-7b-beta and zephyr-7b-sft, full and qlora."""
    assert composed([*OWN, *overrides]).optim.lr == lr


def test_settings_are_modern_ones() -> None:
    cfg = composed([*OWN, "optim=rmsprop"])  # whose own schedule is another
    assert OmegaConf.to_container(cfg.optim.schedule)["decay"] == "cosine"
    assert (cfg.optim.schedule.warmup_steps, cfg.optim.schedule.warmup_ratio) == (None, 0.1)
    cfg = composed(OWN)
    assert cfg.optim._target_.endswith("AdamW")
    assert (cfg.optim.beta2, cfg.trainer.max_epochs, cfg.model.dtype) == (0.999, 1, "float32")
    assert cfg.data.micro_batch_size * cfg.trainer.accumulate_grad_batches == 64
    assert cfg.data.max_tokens_per_micro_batch == "auto"


@pytest.mark.parametrize(
    ("gpu", "bfloat16", "accelerator", "precision"),
    [(False, False, "cpu", "32-true"), (True, True, "gpu", "bf16-mixed"), (True, False, "gpu", "32-true")],
)
def test_auto_is_settled_by_the_device(
    gpu: bool, bfloat16: bool, accelerator: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)
    settings = TrainerSettings(accelerator="auto", precision="auto")
    assert (settings.accelerator, settings.precision) == (accelerator, precision)
    assert resolve_accelerator("cpu") == "cpu"
    assert resolve_precision("auto", "cpu") == "32-true"
    assert resolve_precision("16-mixed", "cpu") == "16-mixed"


def test_auto_of_a_resumed_run_is_what_it_began_with() -> None:
    """Before torch is imported nothing is known of devices; the run itself compares what it has settled."""
    then = {"trainer": {"precision": "bf16-mixed", "accelerator": "gpu"}, "layout": "packed"}
    now = {"trainer": {"precision": "auto", "accelerator": "auto"}, "layout": "auto"}
    (difference,) = differences(then, now)
    names(difference, "layout", "packed", "auto")
    settled = {"trainer": {"precision": "32-true", "accelerator": "cpu"}, "layout": "packed"}
    assert len(list(differences(then, settled))) == 2


def test_a_recipe_under_another_model_is_named() -> None:
    assert recipe_note("zephyr", "mine", ["model=zephyr"]) is None  # an experiment's own choice
    note = recipe_note("zephyr", "mine", ["model=zephyr", "model.path=mine"])
    assert note is not None
    assert "alignment-handbook/zephyr-7b-sft-full" in note
    assert "model=hf model.path=mine" in note
    for model, path in (("zephyr", "alignment-handbook/zephyr-7b-sft-full"), ("hf", "mine"), ("of_mine", "mine")):
        assert recipe_note(model, path, [f"model.path={path}"]) is None


def test_pairs_of_ones_own_on_the_embedded_model() -> None:
    note = recipe_note("tiny", None, [], "local")
    assert note is not None
    assert "model=hf" in note
    assert recipe_note("tiny", None, [], "reviews") is None


class TestTrainable:
    def test_all_weights(self) -> None:
        policy = tiny_model()
        assert count_parameters(policy) == (policy.num_parameters(), policy.num_parameters())

    def test_an_adapter(self) -> None:
        pytest.importorskip("peft")
        policy = tiny_model("llama")
        base = policy.num_parameters()
        trained, total = count_parameters(Lora(rank=2).apply(policy))
        width, hidden = 16, 32  # four square projections, three of the feed-forward block, in each of two layers
        assert trained == 2 * 2 * (4 * (width + width) + 3 * (width + hidden))
        assert total == base + trained


@pytest.mark.parametrize(
    ("norms", "limit", "facts"),
    [
        ((70, 145), 10.0, ("every", "70 to 145", "trainer.gradient_clip_val=10")),
        ((5, 70, 145), 10.0, ("2 of 3 steps", "5 to 145")),
        ((5, 6, 145), 10.0, ()),
        ((70, 145), None, ()),
        ((), 10.0, ()),
    ],
)
def test_clipping_of_most_steps_is_said(
    norms: tuple[float, ...],
    limit: float | None,
    facts: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("step,grad_norm,val/loss\n0,,1.0\n" + "".join(f"{i},{norm},\n" for i, norm in enumerate(norms)))
    print_clipping(file, limit)
    said = capsys.readouterr().out
    names(said, *facts)
    assert bool(said) == bool(facts)


@pytest.mark.slow
def test_it_runs_on_a_cpu_with_no_other_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    write_model(tmp_path / "mine", "llama")
    train("model=hf", "model.path=mine", "data.train=train.jsonl", "hydra.run.dir=run", "logger=csv")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (config["trainer"]["accelerator"], config["trainer"]["precision"]) == ("cpu", "32-true")
    assert config["optim"]["lr"] == 5e-7
    lines = capsys.readouterr().out.splitlines()
    facts = dict(line.split("  ", 1) for line in lines if line.startswith(("learning rate", "precision", "trained")))
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    names(facts["precision"], "32-true", "cpu", "float32")
    names(facts["learning rate"], "5e-07", "cosine", 0.1)
    names(facts["trained"], "100 %")

    train("model=zephyr", "model.path=mine", "trainer=cpu", "data=local", "data.train=train.jsonl", "console=compact",
          "logger=csv", "trainer.max_steps=1", "hydra.run.dir=zephyr")  # fmt: skip
    said = capsys.readouterr().out
    names(said, "model=hf model.path=mine", "rmsprop")
    (line,) = (line for line in said.splitlines() if "rmsprop" in line)
    names(line, "zephyr", "5e-07", "linear", "30 steps")
    with Path("zephyr/metrics.csv").open(newline="") as file:
        assert next(csv.reader(file))[0] == "step"


def test_an_adapter_at_the_learning_rate_of_all_weights_is_noted() -> None:
    note = adapter_rate_note("zephyr", "lora", 5e-7, ["model=zephyr", "adapter=lora"])
    names(note, "optim.lr=5e-07", "model=zephyr", "adapter=lora", "optim.lr=5e-06")
    assert adapter_rate_note("zephyr", "none", 5e-7, []) is None
    assert adapter_rate_note("hf", "lora", 5e-6, []) is None
    assert adapter_rate_note("zephyr", "lora", 5e-7, ["optim.lr=5e-7"]) is None
