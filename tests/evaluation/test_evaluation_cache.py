"""What the policies of one command share is shared by those alone that have it in common; and nothing is taken for
what it was before because its size and time are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from caldpo.data.datamodule import PairDataModule
from tests.evaluation.runs import QUICK, evaluate, inside, result, tiny_run, write_data
from tests.helpers.messages import names


def other_tokenizer(folder: Path) -> None:
    """The same words with their ids exchanged."""
    shutil.copytree(folder / "tokenizer", folder / "other")
    file = folder / "other" / "tokenizer.json"
    config = json.loads(file.read_text())
    words = [word for word in config["model"]["vocab"] if word.startswith("w")]
    ids = [config["model"]["vocab"][word] for word in words]
    config["model"]["vocab"] |= dict(zip(words, reversed(ids), strict=True))
    file.write_text(json.dumps(config))
    assert isinstance(PreTrainedTokenizerFast.from_pretrained(folder / "other"), PreTrainedTokenizerFast)


@pytest.fixture(scope="module")
def differing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that differ in what their data and their reference are made with."""
    home = tmp_path_factory.mktemp("differing")
    write_data(home)
    other_tokenizer(home)
    (home / "short.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    changes = ("", "model.tokenizer=other", "model.dtype=bfloat16", "model.seed=3", "data.max_length=5")
    for number, change in enumerate(changes):
        more = [change, "data.max_prompt_length=3"] if "max_length" in change else [change] if change else []
        tiny_run(home, *more, "trainer.max_steps=3", "callbacks.checkpoint.every=null", run=f"sweep/run{number}")
    return home


def test_each_run_of_a_sweep_is_measured_as_alone(differing: Path) -> None:
    with inside(differing):
        evaluate("sweep", "suite=preference", "report=false", QUICK[0])
        runs = sorted(Path("sweep").iterdir())
        together = [result(run, "preference") for run in runs]
        for run, shared in zip(runs, together, strict=True):
            evaluate(str(run), "suite=preference", "overwrite=true", QUICK[0])
            alone = result(run, "preference")
            assert alone["measures"] == shared["measures"], run
            assert alone["digest"] == shared["digest"]
    assert len({json.dumps(results["measures"]) for results in together}) == len(runs), "they do differ"


def test_data_are_prepared_once_for_runs_that_differ_in_other_things(
    differing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(differing, tmp_path / "copy")
    prepared: list[PairDataModule] = []
    prepare = PairDataModule.prepare_pairs
    monkeypatch.setattr(
        PairDataModule, "prepare_pairs", lambda self, *a, **k: (prepared.append(self), prepare(self, *a, **k))[1]
    )
    with inside(tmp_path / "copy"):
        for precision in ("32-true", "bf16-mixed"):
            run = Path(shutil.copytree("sweep/run0", f"two/{precision}"))
            config = yaml.safe_load((run / "config.yaml").read_text())
            config["trainer"]["precision"] = precision
            (run / "config.yaml").write_text(yaml.safe_dump(config))
        evaluate("two", "suite=preference", "report=false", QUICK[0])
        first, second = (result(run, "preference") for run in sorted(Path("two").iterdir()))
    assert len(prepared) == 1
    assert first["measures"] != second["measures"], "but each has log-probs of its own"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_policy_that_was_edited_in_place_is_measured_anew(
    name: str, differing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the size and the time that it had."""
    shutil.copytree(differing, tmp_path / "copy")
    run = Path("sweep/run0")
    with inside(tmp_path / "copy"):
        arguments = (str(run), "suite=preference", QUICK[0])
        evaluate(*arguments)
        capsys.readouterr()
        file, other = run / "policy" / name, Path("sweep/run3/policy") / name
        before = file.stat()
        if name == "config.json":
            text = file.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
            assert text != file.read_text()
            file.write_text(text)
        else:
            file.write_bytes(other.read_bytes())
        assert file.stat().st_size == before.st_size
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        evaluate(*arguments)
        assert "overwrite=true" not in capsys.readouterr().out
        evaluate(*arguments)
        assert "overwrite=true" in capsys.readouterr().out


def with_places(config: dict, place: Path) -> None:
    config["data"]["cache"] = str(place / "data")
    config["reference"]["cache"] = str(place / "reference")


@pytest.mark.parametrize("more", [(), ("cache=mine",)])
def test_a_run_does_not_say_where_a_command_writes(
    more: tuple[str, ...], differing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(differing, tmp_path / "copy")
    with inside(tmp_path / "copy"):
        run = Path("sweep/run0")
        config = yaml.safe_load((run / "config.yaml").read_text())
        with_places(config, tmp_path / "elsewhere")
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        shutil.rmtree("outputs", ignore_errors=True)
        evaluate(str(run), "suite=preference", *more, QUICK[0])
        names(capsys.readouterr().err, tmp_path / "elsewhere" / "data", "data.cache")
        assert not (tmp_path / "elsewhere").exists()
        assert list(Path(more[0].partition("=")[2] if more else "outputs/cache").glob("tokens-*.safetensors"))


def test_every_cache_of_the_project_is_for_the_command_to_name() -> None:
    """A new key that names one has to be told of."""
    from caldpo.config.cache_dirs import PLACES
    from caldpo.config.conf_dir import conf_dir
    from caldpo.utils.yaml_io import flatten

    results = set()
    for group in ("data", "model", "reference", "adapter"):
        for path in (conf_dir() / group).glob("*.yaml"):
            config = yaml.safe_load(path.read_text())
            keys = flatten(config) if "# @package _global_" in path.read_text() else flatten(config, group)
            results |= {key for key in keys if "cache" in key.rpartition(".")[2]}
    assert results == set(PLACES)
