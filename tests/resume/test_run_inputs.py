"""Whatever a run's numbers depend on: changed between two stretches of a run, it is named and nothing goes on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from caldpo.resume.config_diff import IGNORED, compared_keys, config_digest, differences
from caldpo.resume.run_inputs import COMPARED_AS_READ
from caldpo.utils.digests import path_digests
from tests.evaluation.runs import inside, write_data
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.resume.stopped import RUN, stopped
from tests.resume.stopped import contents as files_of


def test_the_digest_is_of_what_a_step_computes() -> None:
    config = {"loss": {"beta": 0.1}, "trainer": {"precision": "32-true"}, "replay": None, "console": "full"}
    ignored = {"replay": "x", "console": "compact", "logger": {}, "notes": "again", "tags": ["a"]}
    assert config_digest(config) == config_digest(config | ignored)
    assert list(differences(config, config | ignored)) == []
    assert config_digest(config) != config_digest(config | {"loss": {"beta": 0.2}})


def edited(file: str, change: Callable[[dict], dict]) -> None:
    """A JSON file, or each line of a ``.jsonl``, changed."""
    path = Path(file)
    texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    path.write_text("".join(json.dumps(change(json.loads(text))) + "\n" for text in texts))


def other_scores(split: str) -> Callable[[], None]:
    return lambda: edited(f"{split}.jsonl", lambda row: row | {"score_chosen": row["score_chosen"] + 1})


def other_texts() -> None:
    """Of the same tokens: samples and a true reward read the text itself."""
    edited("test.jsonl", lambda row: row | {"prompt": row["prompt"].replace(" ", "  ")})


def other_template() -> None:
    Path("tokenizer/chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_scores("train"), "the scores of the training pairs"),
        (other_scores("test"), "the scores of the held-out pairs"),
        (other_texts, "the texts of the held-out pairs"),
        (other_template, "the tokenizer"),
    ],
)
def test_what_is_known_before_weights_load(
    change: Callable[[], None], named: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change()
    kept = files_of(half / "checkpoints")
    train("resume=half", fails=1)
    names(capsys.readouterr().err, "error: resume", named, "changed")
    assert files_of(half / "checkpoints") == kept


HUB = (
    *(text for text in RUN if "model" not in text and "accumulate" not in text),
    "model=zephyr",
    "model.path=base",
    "model.gradient_checkpointing=false",
    "data=local",
    "data.max_length=32",
    "data.max_prompt_length=16",
    "trainer=cpu",
    "trainer.max_steps=4",
    "optim=adamw",
    "trainer.accumulate_grad_batches=1",
    "callbacks.checkpoint.every=1",
)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on ``base`` that was trained against another model, ``other``, and stopped; whose base is in nothing
    that is saved. And the same of all weights."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapted")
    write_data(folder)
    with inside(folder):
        for name, seed in (("base", 0), ("other", 1)):
            train(
                *RUN,
                f"hydra.run.dir=of_{name}",
                "trainer.max_steps=1",
                f"model.seed={seed}",
                "callbacks.oracle.prompts=0",
            )
            shutil.copytree(f"of_{name}/policy", name)
        distinct = ("reference=precomputed", "reference.path=other", "reference.distinct=true")
        stopped(*HUB, *distinct, "adapter=lora", "hydra.run.dir=lora", after=3)
        stopped(*HUB, *distinct, "hydra.run.dir=full", after=3)
    return folder


@pytest.fixture
def copied(adapted: Path, tmp_path: Path) -> Iterator[None]:
    shutil.copytree(adapted, tmp_path / "copy")
    with inside(tmp_path / "copy"):
        yield


def other_tensor(folder: str) -> Callable[[], None]:
    def change() -> None:
        file = Path(folder) / "model.safetensors"
        weights = load_file(file)
        weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"] + 0.01
        save_file(weights, file, {"format": "pt"})

    return change


def other_rotation(folder: str) -> Callable[[], None]:
    """A setting that no weight shows."""
    return lambda: edited(f"{folder}/config.json", lambda said: said | {"rms_norm_eps": 0.01})


def other_end() -> None:
    edited("base/generation_config.json", lambda said: said | {"eos_token_id": [1, 5]})


@pytest.mark.parametrize(
    ("run", "change", "named"),
    [
        ("lora", other_tensor("base"), "the policy's frozen weights"),
        ("lora", other_tensor("other"), "the reference's weights"),
        ("lora", other_rotation("base"), "the policy's configuration"),
        ("full", other_rotation("base"), "the policy's configuration"),
        ("full", other_rotation("other"), "the reference's configuration"),
        ("full", other_end, "the policy's generation settings"),
        ("full", other_tensor("base"), None),  # the checkpoint holds them: nothing is read of those any more
    ],
)
def test_what_a_checkpoint_does_not_hold(
    run: str, change: Callable[[], None], named: str | None, copied: None, capsys: pytest.CaptureFixture[str]
) -> None:
    change()
    capsys.readouterr()
    train(f"resume={run}", fails=None if named is None else 1)
    if named is not None:
        assert re.search(rf"error: resume.*{named}.* changed", capsys.readouterr().err)


def test_another_number_of_threads_is_noted(copied: None, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        train("resume=full")
    finally:
        torch.set_num_threads(before)
    assert re.search(rf"note: .*threads\D+{before}\D+{before + 1}\b", capsys.readouterr().err)


def test_a_key_that_nobody_has_thought_of_is_compared() -> None:
    """All keys are but for those that are named, and what they name is read."""
    assert compared_keys({"new": {"key": 1}, "console": "compact"}) == {"new.key": 1}
    assert not set(IGNORED) & set(COMPARED_AS_READ)


def test_what_refuses_rows_alone_may_change() -> None:
    """A run that was refused goes on by the key that its message names; the tokens that remain are compared."""
    assert compared_keys({"data": {"max_unknown": 0.05, "on_invalid": "error", "seed": 1}}) == {"data.seed": 1}


def test_contents_are_what_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    file = folder / "below" / "x.bin"
    file.write_bytes(b"abc")
    tree = {"a": {"path": str(folder), "number": 1}, "b": [str(file), "no such thing"], "c": "\0", "d": "x" * 5000}
    first = path_digests(tree)
    assert set(first) == {"a.path", "b"}
    assert path_digests(tree) == first
    file.write_bytes(b"abd")
    assert all(path_digests(tree)[key] != first[key] for key in first)
    file.write_bytes(b"abc")
    assert path_digests(tree) == first
    file.rename(folder / "x.bin")
    assert path_digests(tree)["a.path"] != first["a.path"], "names are read, too"
