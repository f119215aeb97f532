"""No pickle is ever run: not of a run's folder, of a model, an adapter, a data set or a cache."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load, load_file

from caldpo.data.sources.hub_dataset import HubDataset
from caldpo.errors import CaldpoError
from caldpo.models.adapter_folder import load_adapter
from caldpo.models.hub_model import HubModel
from tests.evaluation.runs import evaluate, inside, tiny_run
from tests.helpers.command import call
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model, tiny_tokenizer
from tests.security.traps import plant, raw, zipped


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a sprung trap leaves behind."""
    return tmp_path / "sprung"


def test_the_traps_work(mark: Path, tmp_path: Path) -> None:
    pickle.loads(raw(mark))
    assert mark.exists()
    mark.unlink()
    file = tmp_path / "x.pt"
    file.write_bytes(zipped(mark))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists()


def test_commands_that_read_a_run_open_no_pickle_in_it(trained: Path, tmp_path: Path, mark: Path) -> None:
    from caldpo.compare import main as compare
    from caldpo.generate import main as generate

    run = tmp_path / "run"
    shutil.copytree(trained, run)
    planted = plant(run, mark)
    with inside(trained.parent):  # where its data lies
        evaluate(str(run), "suite=[preference,displacement]", "preference.resamples=10", "displacement.resamples=10")
        evaluate(str(run), "suite=preference", "checkpoint=1", fails=1)
        call(generate, [str(run), "count=1", "max_new_tokens=2"], None)
        call(compare, [str(run)], None)
        call(compare, [str(tmp_path)], None)
    assert (run / "evaluation" / "preference.json").is_file()
    assert (run / "evaluation" / "generations.csv").is_file()
    assert not mark.exists()
    assert all(path.is_file() for path in planted)


def test_damaged_caches_are_made_anew(trained: Path, mark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Token ids and the reference's log-probs: a pickle in their place is a damaged file."""
    cache = trained.parent / "outputs" / "cache"
    kept = {path: path.read_bytes() for path in cache.rglob("*.safetensors")}
    assert {path.name.split("-")[0] for path in kept} == {"tokens", "part"}
    for number, path in enumerate(sorted(kept)):
        path.write_bytes(raw(mark) if number % 2 else zipped(mark))
    again = tiny_run(
        trained.parent,
        "callbacks.oracle.prompts=0",
        "reference=precomputed",
        "trainer.max_steps=1",
        "console=full",
        run="b",
    )
    names(capsys.readouterr().out, "damaged")
    assert not mark.exists()
    for path, content in kept.items():
        assert load_file(path).keys() == load(content).keys()
        assert all((value == load(content)[name]).all() for name, value in load_file(path).items())
    assert json.loads((again / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.ckpt"])
def test_a_model_that_is_a_pickle_is_refused(name: str, tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(zipped(mark))
    with refused(name, "safetensors", key="model.path", value=folder, remedy="save_pretrained"):
        HubModel(str(folder)).load_policy()
    assert not mark.exists()


def test_an_honest_pickle_is_refused_too(tmp_path: Path) -> None:
    """Transformers would load it."""
    folder = tmp_path / "model"
    model = tiny_model()
    model.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert HubModel(str(folder)).load_policy() is not None  # safetensors beside it are taken
    (folder / "model.safetensors").unlink()
    with refused("pytorch_model.bin", "safetensors", key="model.path", value=folder, remedy="save_pretrained"):
        HubModel(str(folder)).load_policy()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved adapter of the project's own."""
    pytest.importorskip("peft")
    from caldpo.models.adapters import Lora

    folder = tmp_path_factory.mktemp("adapter") / "policy"
    adapted = Lora(rank=2).apply(tiny_model())
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.fill_(0.1)
    adapted.save_pretrained(folder)
    return folder


def changed(adapter: Path, folder: Path, **settings: object) -> Path:
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def test_an_adapter_of_the_project_is_loaded(adapter: Path) -> None:
    loaded = load_adapter(tiny_model(), adapter)
    factors = [value for name, value in loaded.named_parameters() if "lora_B" in name]
    assert factors
    assert all((value == 0.1).all() for value in factors)


def test_an_adapter_that_is_a_pickle_is_refused(adapter: Path, tmp_path: Path, mark: Path) -> None:
    folder = changed(adapter, tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(zipped(mark))
    with refused("adapter_model.safetensors", "safetensors", value=folder):
        load_adapter(tiny_model(), folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "trap"}, "megatron_config"),
        ({"megatron_core": "trap"}, "megatron_core"),
        ({"auto_mapping": {"parent_library": "trap", "base_model_class": "X"}}, "auto_mapping"),
        ({"peft_type": "BOFT"}, "LoRA"),
        ({"future_setting": "trap"}, "future_setting"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_settings_that_an_adapter_of_the_project_has_not(
    adapter: Path, tmp_path: Path, settings: dict, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT imports the module that ``megatron_core`` names, and the current folder is on Python's path."""
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with refused(tmp_path / "a" / "adapter_config.json", fact):
        load_adapter(tiny_model(), changed(adapter, tmp_path / "a", **settings))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["train.pkl", "data.pickle", "train.pt"])
def test_a_data_set_of_pickles_is_refused(name: str, tmp_path: Path, mark: Path) -> None:
    (tmp_path / name).write_bytes(raw(mark))
    for path, data_dir in ((str(tmp_path), None), ("pandas", str(tmp_path))):
        with refused(key="data.source.path", value=path):
            list(HubDataset(path=path, data_dir=data_dir).rows("train"))
    assert not mark.exists()


def test_a_data_set_that_is_a_script_is_refused(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(mark)!r}, 'w')\nimport datasets\n")
    with pytest.raises(CaldpoError):
        list(HubDataset(path=str(folder)).rows("train"))
    with pytest.raises(CaldpoError):
        list(HubDataset(path=str(folder / "scripted.py")).rows("train"))
    assert not mark.exists()
