"""LoRA on mixtures of experts, and the coverage of an adapter that is printed at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caldpo.models.adapted_policy import adapter_coverage, adapter_off, base_copy, base_weights
from caldpo.models.adapter_folder import load_adapter
from caldpo.models.adapters import Dora, Lora
from caldpo.models.hub_model import HubModel
from caldpo.models.merged_adapter import merged
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model
from tests.models.test_weight_files import tiny_experts

TOKENS = torch.tensor([[5, 6, 7, 8, 9]])


@torch.no_grad()
def test_lora_on_experts_starts_as_its_base_and_comes_back(tmp_path: Path) -> None:
    """PEFT puts LoRA on Mixtral's experts, which are single tensors, by settings of its own."""
    base = tiny_experts("mixtral")
    expected = base(TOKENS).logits
    policy = Lora(rank=4).apply(base)
    assert torch.equal(policy(TOKENS).logits, expected)
    torch.manual_seed(1)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    moved = policy(TOKENS).logits
    assert (moved - expected).abs().max() > 0.01
    with adapter_off(policy) as model:
        assert torch.equal(model(TOKENS).logits, expected)
    assert torch.equal(base_copy(policy)(TOKENS).logits, expected)
    assert {name for name, _ in base_weights(policy)} == set(tiny_experts("mixtral").state_dict())
    torch.testing.assert_close(merged(policy)(TOKENS).logits, moved, atol=1e-5, rtol=1e-5)
    policy.save_pretrained(tmp_path, save_embedding_layers=False)
    assert torch.equal(load_adapter(tiny_experts("mixtral"), tmp_path)(TOKENS).logits, moved)


@pytest.mark.parametrize(
    ("adapter", "key"), [(Dora(rank=4), "adapter"), (Lora(rank=4, dropout=0.1), "adapter.dropout")]
)
def test_what_peft_cannot_do_with_experts_is_refused_by_its_key(adapter: Lora, key: str) -> None:
    with refused(
        "experts", "MixtralForCausalLM", key=key, remedy="adapter.target_modules=[q_proj,k_proj,v_proj,o_proj]"
    ):
        adapter.apply(tiny_experts("mixtral"))


def test_settings_of_experts_in_a_foreign_folder_are_names_alone(tmp_path: Path) -> None:
    policy = Lora(rank=4).apply(tiny_experts("mixtral"))
    policy.peft_config["default"].rank_pattern = {"(a+)+$": 8}
    policy.save_pretrained(tmp_path, save_embedding_layers=False)
    with refused(key=f"{tmp_path / 'adapter_config.json'}: rank_pattern", value={"(a+)+$": 8}):
        load_adapter(tiny_experts("mixtral"), tmp_path)


def test_what_an_adapter_leaves_out_is_counted() -> None:
    assert adapter_coverage(tiny_model()) == []
    trained, left, *more = adapter_coverage(Lora(rank=4).apply(tiny_model()))
    assert "model.layers.*.self_attn.q_proj (512)" in trained
    names(trained, "2,176 parameters")
    assert "model.embed_tokens (704)" in left
    names(left, "norms", "biases", 80)
    assert not more
    trained, left, experts = adapter_coverage(Lora(rank=4).apply(tiny_experts("gpt_oss")))
    assert "experts" not in trained
    assert "model.layers.*.mlp.experts.gate_up_proj (2,048)" in left
    assert "target_modules" in experts
    trained, left = adapter_coverage(Lora(rank=4).apply(tiny_experts("mixtral")))
    assert "model.layers.*.mlp.experts.gate_up_proj (2,048)" in trained
    assert "experts" not in left


def test_a_routers_loss_that_is_not_added_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_experts("mixtral")
    model.config.router_aux_loss_coef = 0.02
    model.save_pretrained(tmp_path)
    HubModel(str(tmp_path)).load_policy()
    assert "router_aux_loss_coef=0.02" in capsys.readouterr().out
    tiny_model().save_pretrained(tmp_path)
    HubModel(str(tmp_path)).load_policy()
    assert "load-balancing" not in capsys.readouterr().out
