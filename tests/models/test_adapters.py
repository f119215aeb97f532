"""Adapters beside LoRA: DoRA, quantised bases, initialisation from an earlier adapter, and merged weights."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from caldpo.checkpointing.checkpoint_weights import add_frozen, drop_frozen
from caldpo.models.adapted_policy import adapter_off, base_copy
from caldpo.models.adapters import Dora, Lora, NoAdapter
from caldpo.models.merged_adapter import merged, save_merged
from caldpo.models.qlora import QLora, check_quantized, dequantized, is_quantized
from caldpo.reference.disabled_adapter import Adapter
from caldpo.reference.fingerprint import weights_digest
from tests.helpers.logprobs import pair_logprobs
from tests.helpers.messages import names, refused
from tests.helpers.tiny import VOCABULARY, tiny_batch
from tests.reference.contexts import make_context

KINDS: list[Any] = [Lora(rank=3), Dora(rank=3), QLora(rank=3), QLora(rank=3, bits=8)]
NAMES = ["lora", "dora", "qlora4", "qlora8"]
EVERY = pytest.mark.parametrize("adapter", KINDS, ids=NAMES)
ARCHITECTURES = pytest.mark.parametrize("architecture", ["llama", "gpt2"])


def tiny_model(architecture: str = "llama") -> Any:
    """Two layers of 64, the fewest inputs that bitsandbytes widens correctly on a CPU."""
    names = {"llama": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    names["gpt2"] = ("n_embd", "n_layer", "n_head", "n_inner")
    sizes = dict(zip(names[architecture], (64, 2, 2, 128), strict=True))
    config = AutoConfig.for_model(architecture, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
    return model.eval()


class Source:
    """The tiny model as a source."""

    def __init__(self, architecture: str = "llama") -> None:
        self.architecture = architecture

    def load_policy(self) -> Any:
        return tiny_model(self.architecture)

    skeleton = load_policy

    def identity(self) -> str:
        return "tiny"


def applied(adapter: Any, architecture: str = "llama") -> Any:
    return adapter.apply(adapter.base(Source(architecture)).load_policy())


def trained(policy: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return policy


def logps(policy: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(list(pair_logprobs(policy, tiny_batch())))


@EVERY
@ARCHITECTURES
def test_it_starts_as_its_base_which_is_the_reference_ever_after(adapter: Any, architecture: str) -> None:
    base = logps(adapter.base(Source(architecture)).load_policy())
    policy = applied(adapter, architecture)
    digest = weights_digest(policy)
    torch.testing.assert_close(logps(policy), base, rtol=1e-5, atol=1e-5)  # DoRA divides a row by its length
    reference = Adapter().build(make_context(policy, reload=lambda: pytest.fail("it is there")))
    trained(policy).train()
    assert (logps(policy) - base).abs().min() > 1e-4
    torch.testing.assert_close(torch.stack(reference.logps(tiny_batch())), base, rtol=0, atol=0)
    torch.testing.assert_close(logps(base_copy(policy).eval()), base, rtol=0, atol=0)
    assert weights_digest(policy) == digest


@EVERY
@ARCHITECTURES
def test_merged_weights_give_the_same_log_probs(adapter: Any, architecture: str, tmp_path: Path) -> None:
    policy = trained(applied(adapter, architecture))
    before = logps(policy)
    save_merged(policy, tmp_path / "merged")
    actual = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(actual) is type(tiny_model(architecture))
    torch.testing.assert_close(logps(actual), before, rtol=1e-5, atol=1e-4)
    assert torch.equal(logps(policy), before)
    assert not any(map(is_quantized, actual.modules()))


def test_merged_in_a_wider_dtype_than_the_base() -> None:
    """The sum is not rounded to the base's dtype."""
    policy = trained(applied(Lora(rank=3))).to(torch.bfloat16)
    layer = policy.get_base_model().model.layers[0].self_attn.q_proj
    up, down = layer.lora_B["default"].weight.float(), layer.lora_A["default"].weight.float()
    q = merged(policy, torch.float32).get_parameter("model.layers.0.self_attn.q_proj.weight")
    torch.testing.assert_close(q, layer.base_layer.weight.float() + 32 / 3 * up @ down, rtol=1e-5, atol=1e-6)
    assert not torch.equal(q, q.to(torch.bfloat16).float())


def test_merged_in_another_dtype() -> None:
    policy = trained(applied(Lora(rank=3)))
    half = merged(policy, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    q = half.get_parameter("model.layers.0.self_attn.q_proj.weight").float()
    layer = policy.get_base_model().model.layers[0].self_attn.q_proj
    expected = layer.base_layer.weight + 32 / 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.equal(q, expected.to(torch.bfloat16).float())


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_keeps_the_matrix_and_leaves_the_rest(bits: Any) -> None:
    plain, rounded = tiny_model(), QLora(bits=bits).base(Source()).load_policy()
    actual = rounded.model.layers[1].mlp.up_proj
    matrix = plain.model.layers[1].mlp.up_proj.weight
    step = {4: 0.2, 8: 0.51 / 127}[bits]  # half the widest gap between levels, relative to the largest weight
    assert (dequantized(actual) - matrix).abs().max() <= step * matrix.abs().max()
    assert (dequantized(actual) - matrix).abs().max() > 0
    assert sum(map(is_quantized, rounded.modules())) == 14
    assert torch.equal(rounded.lm_head.weight, plain.lm_head.weight)
    assert "bits" in QLora(bits=bits).base(Source()).identity()


@EVERY
def test_a_checkpoint_holds_what_is_trained_and_is_resumed_exactly(adapter: Any) -> None:
    policy = trained(applied(adapter))
    expected, state = logps(policy), {k: v.clone() for k, v in policy.state_dict().items()}
    drop_frozen(state, policy)
    assert all(".lora_" in name for name in state)
    other = applied(adapter)
    logps(other)  # bitsandbytes moves its scales at the first pass
    add_frozen(state, other)
    other.load_state_dict(state, strict=True)
    assert torch.equal(logps(other), expected)


@pytest.mark.parametrize("kind", [Lora, Dora, QLora])
@pytest.mark.parametrize("init_mode", ["merged", "reference"])
def test_starting_from_an_earlier_adapter(kind: Any, init_mode: Any, tmp_path: Path) -> None:
    """Log-ratios are 0 at step 0, both are the earlier adapter, and training moves the policy alone."""
    sft = trained(applied(kind(rank=3, alpha=5)))
    sft.save_pretrained(tmp_path, save_embedding_layers=False)
    adapter = kind(rank=3, alpha=5, init_from=str(tmp_path), init_mode=init_mode)
    adapter.check()
    policy = applied(adapter)
    if kind is not QLora or init_mode == "reference":  # else the sum of base and update is rounded
        torch.testing.assert_close(logps(policy), logps(sft), rtol=1e-5, atol=1e-4)
    with adapter_off(policy) as model:
        begun = logps(model)
    torch.testing.assert_close(logps(policy), begun, rtol=1e-5, atol=1e-5)
    digest, names = weights_digest(policy), [n for n, p in policy.named_parameters() if p.requires_grad]
    trained(policy, seed=1)
    assert (logps(policy) - begun).abs().min() > 1e-4
    with adapter_off(policy) as model:
        assert torch.equal(logps(model), begun)
    assert torch.equal(logps(base_copy(policy).eval()), begun)
    assert [n for n, p in policy.named_parameters() if p.requires_grad] == names
    assert all(".default." in n for n in names)
    assert weights_digest(policy) == digest
    with torch.no_grad():  # another earlier adapter is another reference
        sft.get_parameter(names[-1]).add_(0.5)
    sft.save_pretrained(tmp_path, save_embedding_layers=False)
    assert weights_digest(applied(adapter)) != digest
    policy.save_pretrained(tmp_path / "policy", save_embedding_layers=False)
    sft.get_parameter(names[-1]).data.sub_(0.5)
    sft.save_pretrained(tmp_path, save_embedding_layers=False)
    again = adapter.restore(adapter.base(Source()).load_policy(), tmp_path / "policy")
    torch.testing.assert_close(logps(again), logps(policy), rtol=1e-5, atol=1e-4)
    with adapter_off(again) as model:
        torch.testing.assert_close(logps(model), begun, rtol=1e-5, atol=1e-4)


def test_an_earlier_adapter_of_other_settings_is_refused(tmp_path: Path) -> None:
    applied(Lora(rank=3, alpha=5)).save_pretrained(tmp_path, save_embedding_layers=False)
    for adapter, key, value, remedy in [
        (Lora(rank=4, alpha=5, init_from=str(tmp_path), init_mode="reference"), "adapter.rank", 4, "adapter.rank=3"),
        (Dora(rank=3, alpha=5, init_from=str(tmp_path), init_mode="reference"), "adapter", "dora", "adapter=lora"),
    ]:
        with refused(tmp_path, key=key, value=value, remedy=(remedy, "adapter.init_mode=merged")):
            applied(adapter)
    with refused("adapter_config.json", key="adapter.init_from", value=tmp_path / "nowhere", remedy="model.path"):
        Lora(init_from=str(tmp_path / "nowhere")).check()
    with refused("GPT2LMHeadModel", key=tmp_path, remedy="model.path"):
        applied(Lora(init_from=str(tmp_path)), "gpt2")


def test_a_skeleton_has_the_bytes_of_the_quantised_model() -> None:
    for adapter in (QLora(), QLora(double_quant=False), QLora(bits=8)):
        rounded, skeleton = adapter.base(Source()).load_policy(), adapter.base(Source()).skeleton()
        layer, stand_in = rounded.model.layers[0].mlp.up_proj, skeleton.model.layers[0].mlp.up_proj
        assert stand_in.weight.nbytes == layer.weight.nbytes
        message = sum(v.nbytes for n, v in layer.state_dict().items() if n.endswith(("absmax", "SCB")))
        assert stand_in.scales.nbytes == message
        assert logps(adapter.apply(skeleton)).shape == (2, 5)


def test_what_is_missing_or_cannot_be_is_said_before_weights_load(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("devices", key="adapter", value="qlora", remedy=("trainer.strategy=ddp", "adapter=lora")):
        check_quantized(QLora(), sharded=True)
    check_quantized(QLora(), sharded=False)
    check_quantized(NoAdapter(), sharded=True)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "bitsandbytes" else find(n))
    with refused("bitsandbytes", key="adapter", value="qlora", remedy="pip install 'caldpo[qlora]'"):
        QLora().check()


def test_a_saved_dora_is_loaded_as_one(tmp_path: Path) -> None:
    policy = trained(applied(Dora(rank=3)))
    policy.save_pretrained(tmp_path, save_embedding_layers=False)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["use_dora"] is True
    loaded = NoAdapter().restore(copy.deepcopy(tiny_model()), tmp_path)
    torch.testing.assert_close(logps(loaded), logps(policy), rtol=1e-6, atol=1e-6)


def test_quantised_weights_are_not_trained_whole() -> None:
    quantised = tiny_model()
    quantised.is_quantized = True  # as transformers sets it
    with refused("quantised", "quantization_config", "gradient", key="model.path", remedy="adapter=lora"):
        NoAdapter().apply(quantised)
    assert NoAdapter().apply(tiny_model()) is not None


def test_an_adapter_of_another_base_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = applied(Lora(rank=3))
    policy.peft_config["default"].base_model_name_or_path = "owner/one"
    policy.save_pretrained(tmp_path)
    output = []
    for path in ("owner/one", "/models/one/", "owner/two", ""):
        base = tiny_model()
        base.config.name_or_path = path
        Lora(rank=3).restore(base, tmp_path)
        output.append(capsys.readouterr().out)
    names(output.pop(2), tmp_path, "owner/one", "owner/two")
    assert output == ["", "", ""]
