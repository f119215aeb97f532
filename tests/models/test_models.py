"""Model sources: what they load and disable, and the errors when they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import is_flash_attn_2_available

from caldpo.errors import CaldpoError
from caldpo.models.hub_model import HubModel
from caldpo.models.model_source import prepare_for_training
from caldpo.models.random_init import RandomModel
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model and its tokenizer in the hub's format."""
    path = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_a_folder_in_the_hub_format(folder: Path) -> None:
    source = HubModel(str(folder))
    policy, tokenizer = source.load_policy(), source.load_tokenizer()
    for name, value in tiny_model().state_dict().items():
        assert torch.equal(policy.state_dict()[name], value)
    assert tokenizer.convert_tokens_to_ids("w3") == 7
    assert source.identity() == str(folder)
    assert source.load_policy() is not policy


def test_dtype_is_the_checkpoints_or_the_asked(folder: Path) -> None:
    assert HubModel(str(folder)).load_policy().dtype == torch.float32
    assert HubModel(str(folder), dtype="bfloat16").load_policy().dtype == torch.bfloat16


def test_pad_token_is_filled_in(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert HubModel("unused", tokenizer=str(tmp_path)).load_tokenizer().pad_token_id == 2


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with refused("EOS", key="model.tokenizer", value=tmp_path, remedy=("eos_token", "model.tokenizer")):
        HubModel("unused", tokenizer=str(tmp_path)).load_tokenizer()


@pytest.mark.parametrize("path", ["./not/there", "some-org/some-model"])
def test_what_cannot_be_loaded_is_named(path: str) -> None:
    """The hub is out of reach in tests, as it is on many clusters."""
    with refused(key="model.path", value=path):
        HubModel(path).load_policy()
    with refused(key="model.path", value=path):
        HubModel(path).load_tokenizer()


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama"])
def test_dropout_is_off_unless_asked_for(architecture: str) -> None:
    rates = {
        "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        "gpt_neox": ("hidden_dropout", "attention_dropout"),
    }
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    names = rates.get(architecture, ("attention_dropout",))
    config = AutoConfig.for_model(architecture, vocab_size=50, **sizes, **dict.fromkeys(names, 0.5))
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    for dropout in (False, True):
        model = AutoModelForCausalLM.from_config(config)
        prepare_for_training(model, gradient_checkpointing=False, dropout=dropout).train()
        same = torch.equal(model(ids).logits, model(ids).logits)
        assert same is not dropout


@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "smollm3"]
)
def test_random_models_have_the_asked_sizes(architecture: str, folder: Path) -> None:
    source = RandomModel(
        str(folder), architecture, hidden_size=32, num_layers=3, num_heads=4, intermediate_size=48, seed=1
    )
    policy = source.load_policy()
    config = policy.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 3, 4)
    assert config.vocab_size == len(tiny_tokenizer())
    assert any(48 in p.shape for p in policy.parameters())
    assert policy(torch.tensor([[4, 5, 6]])).logits.shape == (1, 3, config.vocab_size)


def test_random_weights_follow_their_own_seed(folder: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        return next(RandomModel(str(folder), seed=seed).load_policy().parameters()).detach()

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = first(1)
    assert torch.equal(torch.random.get_rng_state(), before)  # the run's own generator is left alone
    torch.manual_seed(6)
    assert torch.equal(one, first(1))
    assert not torch.equal(one, first(2))


def test_sizes_that_do_not_fit_are_named(folder: Path) -> None:
    with refused("model.hidden_size=64", key="model.num_heads", value=5):
        RandomModel(str(folder), num_heads=5)
    with refused("model.num_heads=4", key="model.num_key_value_heads", value=3):
        RandomModel(str(folder), num_key_value_heads=3)


def test_a_missing_attention_package_is_no_missing_model(folder: Path) -> None:
    if is_flash_attn_2_available():
        pytest.skip("FlashAttention is installed")
    with pytest.raises(CaldpoError) as caught:
        HubModel(str(folder), attention="flash_attention_2").load_policy()
    names(caught, key="model.attention", value="flash_attention_2", remedy=("model.attention=sdpa", "flash-attn"))
    assert "HF_TOKEN" not in str(caught.value)
    assert ".." not in str(caught.value)


def test_a_missing_model_is_no_missing_attention() -> None:
    with refused(key="model.path", value="./not/there"):
        HubModel("./not/there", attention="flash_attention_2").load_policy()
