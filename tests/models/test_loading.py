"""Models that are refused before weights load, the choice of attention, notes, and the commit of a resumed run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from caldpo.models import architecture
from caldpo.models.architecture import choose_attention
from caldpo.models.hub_model import HubModel, causal_lm_skeleton, check_causal_lm, load_tokenizer
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model

OLD, NEW = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        ({"model_type": "t5"}, ("encoder-decoder", "t5")),
        ({"model_type": "gemma3"}, ("vision_config", "gemma3")),
        ({"model_type": "vit"}, ("type vit",)),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            ("LlamaForSequenceClassification", "LlamaForCausalLM"),
        ),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, ("BertForMaskedLM", "BertLMHeadModel")),
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, ("LlamaModel", "output head", "LlamaForCausalLM")),
    ],
)
def test_what_is_no_decoder_is_refused_by_its_configuration_alone(
    config: dict[str, object], facts: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))  # there are no weights at all
    for load in (HubModel(str(tmp_path)).load_policy, lambda: check_causal_lm(str(tmp_path), key="model.path")):
        with refused(*facts, key="model.path", value=tmp_path, remedy="AutoModelForCausalLM"):
            load()


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path) -> None:
    """Its config.json says nothing of it; transformers would draw the head at random."""
    model = tiny_model()
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(tmp_path, state_dict=state)
    with refused("lm_head.weight", key="model.path", value=tmp_path, remedy="config.json"):
        HubModel(str(tmp_path)).load_policy()


@pytest.mark.parametrize(
    ("gpu", "package", "family", "dtype", "taken"),
    [
        (True, True, "llama", torch.bfloat16, "flash_attention_2"),
        (True, True, "llama", torch.float32, "sdpa"),
        (True, False, "llama", torch.bfloat16, "sdpa"),
        (False, True, "llama", torch.bfloat16, "sdpa"),
        (True, False, "gemma2", torch.bfloat16, "flex_attention"),
        (False, False, "gemma2", torch.float32, "eager"),
    ],
)
def test_attention_is_what_package_gpu_and_dtype_allow(
    gpu: bool, package: bool, family: str, dtype: torch.dtype, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(architecture, "is_flash_attn_2_available", lambda: package)
    config = AutoConfig.for_model(family)
    assert choose_attention(config, dtype)[0] == taken
    config.head_dim = 512
    assert choose_attention(config, dtype)[0] != "flash_attention_2"


def test_one_line_says_what_was_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    HubModel(str(tmp_path), dtype="bfloat16").load_policy()
    said = capsys.readouterr().out
    count = sum(p.numel() for p in model.parameters())
    names(said, "LlamaForCausalLM", f"{count:,} parameters", "bfloat16", f"{2 * count / 2**20:.1f} MiB", "cpu")
    names(said, "sdpa", "FlashAttention", "no GPU")
    assert "model.revision" not in said  # a folder has no commit


def test_a_skeleton_of_every_choice_is_made_without_a_gpu(tmp_path: Path) -> None:
    tiny_model("gemma2").save_pretrained(tmp_path)
    for choice in ("auto", "flex_attention", "flash_attention_2"):
        skeleton = causal_lm_skeleton(str(tmp_path), key="model.path", attention=choice)
        assert skeleton.config._attn_implementation == "eager"  # SDPA has no soft-capped scores


def test_weights_of_a_folder_survive_loading(tmp_path: Path) -> None:
    tiny_model("gemma3_text").save_pretrained(tmp_path)
    kept = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, value in HubModel(str(tmp_path)).load_policy().state_dict().items():
        assert torch.equal(value, kept[name])


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with refused("tokenizer", key="model.path", value=tmp_path, remedy="model.tokenizer=ID_OR_FOLDER"):
        load_tokenizer(str(tmp_path), key="model.path")
