"""``trainer.compile`` changes no number and no name, and says what it cost."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from caldpo.checkpointing.checkpoint_io import load_weights
from caldpo.lightning_trainer import TrainerSettings
from caldpo.loggers import MetricsFile
from caldpo.logprobs.packed_attention import use_packed_attention
from caldpo.losses.cal_dpo import CalDPO
from caldpo.models.compilation import CompileClock, compile_layers
from caldpo.models.model_source import prepare_for_training
from caldpo.models.tabular_model import TabularModel
from caldpo.reference.frozen_model import Frozen
from caldpo.reference.reference_base import in_run_dtype
from tests.helpers.messages import refused
from tests.helpers.tiny import sample_responses, tiny_model, tiny_pairs, tiny_tokenizer
from tests.helpers.tiny_trainer import Pairs, fit, make_module
from tests.reference.contexts import make_context
from tests.test_step_metrics import Packed


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize(("layout", "checkpointing"), [(Packed, False), (Pairs, True)])
def test_losses_and_checkpoints_are_those_of_the_plain_policy(
    layout: type[Pairs], checkpointing: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables, names = [], []
    for compiled in (False, True):
        module = make_module(CalDPO(beta=0.5), lr=2e-3)
        for model in (module.policy, module.reference.model):
            use_packed_attention(model)
        prepare_for_training(module.policy, gradient_checkpointing=checkpointing, dropout=False)
        folder = tmp_path / str(compiled)
        data = layout(tiny_pairs(34), tiny_pairs(9), 4)
        trainer = fit(module, data, folder, max_steps=12, val_check_interval=4, compile=compiled)
        trainer.save_checkpoint(folder / "x.ckpt")
        names.append(sorted(load_weights(folder / "x.ckpt")))
        module.policy.save_pretrained(folder / "policy")
        tables.append(pd.read_csv(folder / "metrics.csv"))
    for name in ("loss", "grad_norm", "log_ratios/chosen", "val/loss", "val/logps/rejected"):
        plain, compiled_values = (table[name].dropna().tolist() for table in tables)
        assert plain == pytest.approx(compiled_values, rel=1e-5, abs=1e-5), name
    assert names[0] == names[1]
    assert not any("_orig_mod" in name for name in names[1])
    exported = type(module.policy).from_pretrained(tmp_path / "True" / "policy").state_dict()
    assert {f"policy.{name}" for name in exported} == set(names[1])
    said = re.findall(r"([\d.]+) s \((\d+) graphs for 6 parts\)", capsys.readouterr().out)
    assert said
    assert int(said[-1][1]) <= 8  # two kinds of parts, with and without gradient: not one for each batch


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_resident_reference_is_the_compiled_policys_start_in_half_precision(precision: str, tmp_path: Path) -> None:
    """The policy is compiled and its copy is not: they differ by rounding, and that is no other start."""
    torch.compiler.reset()  # tests before this one may have used up how often a part is compiled
    module = make_module(CalDPO(beta=0.5))
    settings = TrainerSettings(progress_bar=False, max_steps=1, precision=precision, compile=True)
    trainer = settings.build(tmp_path, [MetricsFile(tmp_path)], [])
    policy = in_run_dtype(trainer, module.policy)
    context = make_context(policy, precision=trainer.precision_plugin.forward_context)
    module.reference = Frozen().build(context)
    data = Pairs(tiny_pairs(16), tiny_pairs(24, longest=20), 8)
    trainer.validate(module, data, verbose=False)
    assert 0 < module.largest_start_ratio < 2e-2  # there is something to forgive
    trainer.fit(module, data)
    assert module.global_step == 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3", "mistral"])
def test_everything_in_a_layer_but_its_attention_is_compiled(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **keys: compiled.append((module, keys)))
    policy = tiny_model(architecture)
    before = [name for name, _ in policy.named_modules()]
    parts = compile_layers(policy)
    assert [part for part, _ in compiled] == parts
    assert all(keys == {"dynamic": True} for _, keys in compiled)
    paths = {id(module): name for name, module in policy.named_modules()}
    left = [name for name, module in policy.named_modules() if "Attention" in type(module).__name__]
    assert len(left) == 2  # of its two layers
    for name in (paths[id(part)] for part in parts):
        assert re.search(r"\.[01]\.\w+$", name), name
        assert not any(attention.startswith(name) for attention in left)
    inside = {n for n, p in policy.named_parameters() if re.search(r"\.[01]\.", n)}
    reached = {
        f"{name}.{n}"
        for name in [*left, *(paths[id(p)] for p in parts)]
        for n, _ in policy.get_submodule(name).named_parameters()
    }
    assert inside == reached
    assert before == [name for name, _ in policy.named_modules()]


def test_a_model_without_layers_is_refused() -> None:
    policy = TabularModel(prompts=2, responses=2, environment_seed=0, reference_spread=1.0).load_policy()
    with refused("TabularLM", "layers", key="trainer.compile", value="true"):
        compile_layers(policy)


def test_the_clock_counts_compilations_between_start_and_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 13.5, 20.0, 20.25])
    monkeypatch.setattr("caldpo.models.compilation.time.perf_counter", lambda: next(now))
    torch._dynamo.reset()
    clock = CompileClock()

    def compiled(value: torch.Tensor) -> torch.Tensor:
        return value * 2 + 1

    first, second, third = (torch.compile(f, backend="eager") for f in (compiled, lambda x: x - 3, lambda x: x + 3))
    clock.start()
    first(torch.ones(3))
    first(torch.ones(3))  # nothing new
    second(torch.ones(3))
    clock.stop()
    third(torch.ones(3))
    assert (clock.seconds, clock.count) == (3.75, 2)


def test_generation_compiles_nothing() -> None:
    """Its steps have lengths of their own, and each would be compiled."""
    policy, plain = tiny_model(), tiny_model()
    clock = CompileClock()
    compile_layers(policy)
    keys: dict[str, Any] = {"max_new_tokens": 5, "temperature": 1.0, "seed": 3}
    prompts = [[5, 6, 7], [8]]
    clock.start()
    found = sample_responses(policy, tiny_tokenizer(), prompts, **keys)
    clock.stop()
    assert clock.count == 0
    assert found == sample_responses(plain, tiny_tokenizer(), prompts, **keys)
