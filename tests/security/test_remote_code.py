"""Python code that comes with a model: off, refused with its name, and announced where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils

from caldpo.models.hub_files import announce_code, code_files, commit_of, require_safe
from caldpo.models.hub_model import HubModel, causal_lm_skeleton, check_causal_lm, load_causal_lm
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model, tiny_tokenizer

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({mark!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the model's code leaves behind when it is run; transformers keeps its copies of the code apart."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    announce_code.cache_clear()
    return tmp_path / "ran"


@pytest.fixture
def folder(tmp_path: Path, mark: Path) -> Path:
    """A model that brings code of its own."""
    path = tmp_path / "own"
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    (path / "modeling_own.py").write_text(CODE.format(mark=str(mark)))
    places = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    rewrite(path, model_type="own", auto_map=places)
    return path


def rewrite(folder: Path, **news: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | news))


def test_it_is_off_and_refused(folder: Path, mark: Path) -> None:
    source = HubModel(str(folder))
    for load in (source.load_policy, source.skeleton, lambda: load_causal_lm(str(folder), key="reference.path")):
        with refused(value=folder) as error:
            load()
        assert error.value.key in ("model.path", "reference.path")  # type: ignore[attr-defined]
    assert not mark.exists()
    assert "code" not in source.identity()


def test_it_is_announced_and_part_of_the_identity(folder: Path, mark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = HubModel(str(folder), trust_remote_code=True)
    assert source.identity().startswith(f"{folder} ")
    names(source.identity(), "code", "modeling_own.py")
    assert not mark.exists(), "the identity alone runs nothing"
    source.load_tokenizer()
    policy = source.load_policy()
    source.load_policy()
    assert mark.exists()
    assert type(policy).__name__ == "OwnModel"
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "trust_remote_code:" in line)
    names(line, folder, "modeling_own.py")


def test_a_trusted_model_without_code_is_said_to_have_none(
    tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model().save_pretrained(tmp_path / "plain")
    source = HubModel(str(tmp_path / "plain"), trust_remote_code=True)
    source.load_policy()
    names(capsys.readouterr().err, "trust_remote_code:", tmp_path / "plain", "no")
    assert source.identity() == str(tmp_path / "plain")


def test_code_of_other_repositories_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "some/repo--modeling_x.XConfig"}}))
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_y.Slow", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert code_files(str(tmp_path), None) == ["some/repo: modeling_x.py", "tokenization_y.py"]
    (tmp_path / "config.json").write_text("[" * 100_000)  # deeper than Python's parser goes
    assert code_files(str(tmp_path), None) == ["tokenization_y.py"]


@pytest.mark.parametrize(
    ("news", "place"),
    [
        ({"attn_implementation": "some/kernel"}, "attn_implementation"),
        ({"_attn_implementation": "paged|some/kernel@main:f"}, "_attn_implementation"),
        ({"text_config": {"experts_implementation": "some/kernel"}}, "text_config.experts_implementation"),
        ({"attn_implementation": {"": "some/kernel"}}, "attn_implementation"),
    ],
)
def test_kernels_of_the_hub_are_code_too(news: dict, place: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    rewrite(tmp_path, **news)
    for load in (load_causal_lm, causal_lm_skeleton, lambda path, key: check_causal_lm(path, key=key)):
        kernel, remedy = "some/kernel", ("config.json", "model.trust_remote_code=true")
        with refused("config.json", f"({place}: ", kernel, key="model.path", value=tmp_path, remedy=remedy):
            load(str(tmp_path), key="model.path")
    require_safe(str(tmp_path), key="model.path", trusted=True)
    rewrite(tmp_path, attn_implementation="sdpa", _attn_implementation=None, text_config=None)
    assert load_causal_lm(str(tmp_path), key="model.path").dtype == torch.float32


def test_the_commit_is_read_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's client keeps a download: refs name a commit, snapshots hold its files."""
    commit = "0123456789abcdef" * 2 + "01234567"
    snapshot = tmp_path / "models--some--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    tiny_model().save_pretrained(snapshot)
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert commit_of("some/model", None) == commit
    assert HubModel("some/model").identity() == f"some/model@{commit}"
    assert commit_of(str(snapshot), None) is None
    assert commit_of("some/other", "v1") == "v1"
