"""LoRA: starts as its base, trains nothing else, and its base is the reference."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from caldpo.checkpointing.checkpoint_io import load_weights
from caldpo.checkpointing.checkpoint_weights import add_frozen
from caldpo.models.adapted_policy import adapter_off, base_weights, set_dora_magnitudes
from caldpo.models.adapters import Dora, Lora, NoAdapter
from caldpo.models.model_source import prepare_for_training
from caldpo.models.tabular_model import TabularModel
from caldpo.reference.disabled_adapter import Adapter, AdapterReference
from caldpo.reference.fingerprint import weights_digest
from caldpo.reference.frozen_model import Frozen, FrozenReference
from caldpo.reference.precomputed import Precomputed
from caldpo.reference.reference_base import in_run_dtype
from tests.helpers.command import RANDOM_MODEL, train
from tests.helpers.logprobs import pair_logprobs
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_batch, tiny_model
from tests.reference.contexts import batch_of, make_context

SMALL = [
    *RANDOM_MODEL,
    "optim.lr=0.05",
    "callbacks.samples.max_new_tokens=4",
    "trainer.progress_bar=false",
    "trainer.max_steps=6",
    "logger=csv",
    "hydra.run.dir=run",
    "adapter=lora",
    "adapter.rank=4",
]


def trained(policy: Any) -> Any:
    """The policy with an adapter that no longer does nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_a_fresh_adapter_changes_nothing_and_a_trained_one_can_be_disabled(architecture: str) -> None:
    base, batch = tiny_model(architecture), tiny_batch()
    expected = pair_logprobs(base, batch)
    policy = Lora(rank=3).apply(copy.deepcopy(base))
    torch.testing.assert_close(pair_logprobs(policy, batch), expected, rtol=0, atol=0)
    trained(policy)
    assert (pair_logprobs(policy, batch)[0] - expected[0]).abs().min() > 1e-3
    with adapter_off(policy) as model:
        torch.testing.assert_close(pair_logprobs(model, batch), expected, rtol=0, atol=0)
    assert (pair_logprobs(policy, batch)[0] - expected[0]).abs().min() > 1e-3


def test_the_adapter_alone_is_trained_on_every_layer_but_the_head() -> None:
    policy = Lora(rank=3).apply(tiny_model())
    names = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert all(".lora_" in name for name in names)
    assert len(names) == 2 * 2 * 7  # A and B of q, k, v, o, gate, up, down in two layers
    assert {p.shape[0] for n, p in policy.named_parameters() if ".lora_A" in n} == {3}
    some = Lora(target_modules=["q_proj"]).apply(tiny_model())
    assert sum(p.requires_grad for p in some.parameters()) == 4


def test_the_first_weights_follow_the_adapters_own_seed() -> None:
    def first(seed: int) -> torch.Tensor:
        policy = Lora(rank=3, seed=seed).apply(tiny_model())
        return next(p for n, p in policy.named_parameters() if ".lora_A" in n).detach()

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = first(1)
    torch.manual_seed(5)
    tiny_model()
    assert torch.equal(first(1), one)
    torch.manual_seed(77)
    assert torch.equal(first(1), one)
    assert not torch.equal(first(2), one)
    torch.manual_seed(5)
    base = tiny_model()
    torch.random.set_rng_state(before)
    Lora(rank=3).apply(base)
    assert torch.equal(torch.random.get_rng_state(), before)  # the run's own generator is left alone


@pytest.mark.parametrize(
    "source", [Adapter(), Precomputed(spot_check=0), Frozen()], ids=["adapter", "precomputed", "frozen"]
)
def test_every_reference_is_the_base(source: Any, tmp_path: Path) -> None:
    """Of a policy that goes on to train, for the pairs of a split and for others, and as a model that generates."""
    if isinstance(source, Precomputed):
        source.cache = str(tmp_path)
    base = tiny_model()
    policy = Lora(rank=3).apply(copy.deepcopy(base))
    context = make_context(policy, reload=lambda: pytest.fail("the base is there"))
    reference, expected = source.build(context), FrozenReference(base)
    reference.prepare()
    trained(policy).train()
    for split, rows in (("train", [3, 1, 2]), ("test", [0, 4])):
        batch = batch_of(context, split, rows)
        for _ in range(2):
            torch.testing.assert_close(reference.logps(batch), expected.logps(batch), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reference.logps(tiny_batch()), expected.logps(tiny_batch()), rtol=1e-5, atol=1e-5)
    with reference.live() as model, torch.no_grad():
        ids = torch.tensor([[4, 5, 6]])
        was = model.training
        torch.testing.assert_close(model.eval()(ids).logits, base(ids).logits)
        model.train(was)
    assert policy.training
    assert any(p.requires_grad for p in policy.parameters())


def test_running_the_reference_between_forward_and_backward_changes_no_gradient() -> None:
    policy = trained(Lora(rank=3).apply(tiny_model()))
    reference, batch = Adapter().build(make_context(policy, reload=tiny_model)), tiny_batch()

    def gradients(ask: bool) -> list[torch.Tensor]:
        policy.zero_grad()
        chosen, rejected = pair_logprobs(policy, batch)
        if ask:
            reference.logps(batch)
        (chosen - rejected).sum().backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    for without, asked in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(without, asked)


def test_a_policy_without_adapter_is_refused() -> None:
    with refused("adapter", key="reference", value="adapter", remedy=("adapter=lora", "reference=precomputed")):
        Adapter().build(make_context())


def test_a_run_without_adapter_is_refused_before_anything_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from caldpo.models.random_init import RandomModel

    for name in ("load_tokenizer", "load_policy"):
        monkeypatch.setattr(RandomModel, name, lambda _: pytest.fail("loaded"))
    words = [w for w in SMALL if "adapter" not in w]
    train(*words, "adapter=none", "reference=adapter", "loss=dpo", fails=1)
    names(capsys.readouterr().err, "reference=adapter", "adapter=lora", "reference=precomputed", "reference=frozen")


def test_the_base_has_the_same_key_with_and_without_an_adapter() -> None:
    plain, policy = tiny_model(), trained(Lora(rank=3).apply(tiny_model()))
    assert {n for n, _ in base_weights(policy)} == {n for n, _ in base_weights(plain)}
    assert weights_digest(policy) == weights_digest(plain)
    with torch.no_grad():
        policy.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight[0, 0] += 1e-4
    assert weights_digest(policy) != weights_digest(plain)


def test_gradient_checkpointing_gives_the_adapter_its_gradients() -> None:
    actual = []
    for checkpointing in (False, True):
        base = prepare_for_training(tiny_model(), gradient_checkpointing=checkpointing, dropout=False)
        policy = trained(Lora(rank=3).apply(base)).train()
        assert any(getattr(m, "gradient_checkpointing", False) for m in policy.modules()) is checkpointing
        pair_logprobs(policy, tiny_batch())[0].sum().backward()
        actual.append([p.grad for p in policy.parameters() if p.requires_grad])
    for plain, recomputed in zip(*actual, strict=True):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("later", [False, True])
def test_dora_starts_as_its_base_in_half_precision(dtype: torch.dtype, later: bool) -> None:
    """Row lengths in the dtype in which the forward measures them, whether the weights have it before or after."""
    policy: Any = Dora(rank=2).apply(tiny_model(dtype=torch.float32 if later else dtype))
    if later:
        trainer = SimpleNamespace(precision_plugin=SimpleNamespace(convert_module=lambda m: m.to(dtype)))
        policy = in_run_dtype(trainer, policy)  # type: ignore[arg-type]
    assert all(p.requires_grad for n, p in policy.named_parameters() if "magnitude" in n)
    reference = AdapterReference(policy)
    with torch.no_grad():
        for ours, theirs in zip(pair_logprobs(policy, tiny_batch()), reference.logps(tiny_batch()), strict=True):
            assert torch.equal(ours, theirs)


def test_trained_magnitudes_of_dora_are_left_alone() -> None:
    policy: Any = trained(Dora(rank=2).apply(tiny_model()))
    before = {n: p.clone() for n, p in policy.named_parameters() if "magnitude" in n}
    set_dora_magnitudes(policy)
    assert before
    assert all(torch.equal(policy.get_parameter(name), value) for name, value in before.items())


def test_layers_that_are_not_there_are_named() -> None:
    with refused("LlamaForCausalLM", key="adapter.target_modules", value="'nowhere'", remedy=("q_proj", "all-linear")):
        Lora(target_modules=["nowhere"]).apply(tiny_model())
    table = TabularModel(2, 3, environment_seed=0, reference_spread=1.0).load_policy()
    with refused("TabularLM", key="adapter.target_modules", value="all-linear", remedy="adapter=none"):
        Lora().apply(table)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused(key="adapter", value="lora", remedy="pip install 'caldpo[peft]'"):
        Lora().check()
    NoAdapter().check()


@pytest.mark.parametrize("reference", ["adapter", "auto"])
def test_a_whole_run(folder: Path, reference: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Step 0 at log-ratio 0, then apart; checkpoints hold the policy; policy/ holds the adapter on its base."""
    from caldpo.models.random_init import RandomModel

    start = RandomModel("tokenizer", hidden_size=16).load_policy()
    start.save_pretrained("base")
    words = [w for w in SMALL if not w.startswith(("model=", "model."))]
    # a model that lies in a folder can be found again by the exported adapter
    hub = ["model=zephyr", "model.path=base", "model.tokenizer=tokenizer", "optim=adamw", "trainer=cpu"]
    hub += ["trainer.precision=32-true", "trainer.accumulate_grad_batches=1", "trainer.val_check_interval=null"]
    train(*hub, *words, f"reference={reference}", "loss=dpo", "callbacks.checkpoint.every=6")
    names(capsys.readouterr().out.replace("\n", ""), "policy", "adapter", "base")
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["start_difference"] < 1e-6
    names(summary["policy"], "LoRA", "rank 4", "alpha 32", "all-linear", "seed 0", "base")
    names(summary["reference"], "policy", "starting weights", "base")
    assert summary["metrics"]["val/log_ratios/chosen"] != 0
    assert summary["metrics"]["val/rewards/accuracies"] > 0.9

    assert {p.name for p in Path("run/policy").glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert all(".lora_" in name for name in load_file("run/policy/adapter_model.safetensors"))
    (saved,) = Path("run/checkpoints").iterdir()
    state = {name.removeprefix("policy."): value for name, value in load_weights(saved).items()}
    assert all(".lora_" in name for name in state), "the base is not copied"
    exported = AutoModelForCausalLM.from_pretrained("run/policy")
    policy = Lora(rank=4).apply(copy.deepcopy(start))
    add_frozen(state, policy)
    policy.load_state_dict(state)
    batch = tiny_batch()
    torch.testing.assert_close(pair_logprobs(exported, batch), pair_logprobs(policy, batch), rtol=1e-5, atol=1e-5)
    assert (pair_logprobs(exported, batch)[0] - pair_logprobs(start, batch)[0]).abs().max() > 1e-3
