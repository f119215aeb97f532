"""Which weights are evaluated, what is refused, and that nothing of somebody's run folder is executed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from caldpo.config.conf_dir import conf_dir
from caldpo.config.trusted_config import own_targets
from caldpo.evaluation import evaluated_policy
from caldpo.evaluation.evaluation_target import SECTIONS, Target
from caldpo.evaluation.model_loading import Weights, find_weights, load_weights
from caldpo.generate import main as generate
from caldpo.models.adapted_policy import adapter_off
from caldpo.models.adapters import Lora, NoAdapter
from caldpo.models.random_init import RandomModel
from tests.evaluation.runs import QUICK, evaluate, inside, tiny_run, write_data
from tests.helpers.command import call
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model


def target_of(run: Path) -> Target:
    config = yaml.safe_load((run / "config.yaml").read_text())
    return Target("run", run, run, config, json.loads((run / "summary.json").read_text()))


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage; its data lies where it lay."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def weights_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def load(run: Path, wanted: object) -> torch.Tensor:
    target = target_of(run)
    with inside(run.parent):
        source = RandomModel(tokenizer="tokenizer", hidden_size=16)
        return weights_of(load_weights(find_weights(target, wanted), source, NoAdapter(), target))


def test_final_last_and_the_checkpoint_of_the_last_step_are_the_export(trained: Path) -> None:
    export = weights_of(AutoModelForCausalLM.from_pretrained(trained / "policy"))
    assert find_weights(target_of(trained), "final") == Weights(8, trained / "policy")
    for wanted in ("final", "last", 8):
        assert torch.equal(load(trained, wanted), export)


def test_an_earlier_checkpoint_lies_between_start_and_end(trained: Path) -> None:
    start, middle, end = (load(trained, step) for step in (0, 4, 8))
    assert 0 < (middle - start).norm() < (end - start).norm()


def test_the_start_of_a_run_that_continues_an_adapter_has_that_adapter(tmp_path: Path) -> None:
    """Policy and reference start as the earlier adapter on the base, not as the base."""
    pytest.importorskip("peft")
    sft = Lora(rank=2).apply(tiny_model()).eval()
    torch.manual_seed(0)
    for name, parameter in sft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    sft.save_pretrained(tmp_path, save_embedding_layers=False)
    adapter = Lora(rank=2, init_from=str(tmp_path), init_mode="reference")
    source: Any = SimpleNamespace(load_policy=tiny_model)
    start = load_weights(Weights(0, None), source, adapter, Target("run", tmp_path, tmp_path, {}))
    assert not any(parameter.requires_grad for parameter in start.parameters())
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad(), adapter_off(start) as reference:
        torch.testing.assert_close(reference(ids).logits, sft(ids).logits)
    with torch.no_grad():
        torch.testing.assert_close(start(ids).logits, sft(ids).logits)
        assert not torch.allclose(start(ids).logits, tiny_model().eval()(ids).logits, atol=1e-2)


def test_without_an_export_the_last_checkpoint_is_final(copy: Path, trained: Path) -> None:
    shutil.rmtree(copy / "policy")
    weights = find_weights(target_of(copy), "final")
    assert weights.path == copy / "checkpoints" / "step-8"
    with inside(trained.parent):
        source = RandomModel(tokenizer="tokenizer", hidden_size=16)
        loaded = load_weights(weights, source, NoAdapter(), target_of(copy))
    assert torch.equal(weights_of(loaded), load(trained, "final"))


def test_a_checkpoint_before_the_end_is_not_taken_for_the_end(copy: Path) -> None:
    shutil.rmtree(copy / "policy")
    shutil.rmtree(copy / "checkpoints" / "step-8")
    assert find_weights(target_of(copy), "last").step == 5  # the end of the first epoch
    with refused("policy/", "4, 5", key="checkpoint", value="final", remedy="checkpoint=last"):
        find_weights(target_of(copy), "final")


def test_a_run_without_any_weights(copy: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "policy")
    shutil.rmtree(copy / "checkpoints")
    with inside(trained.parent):
        evaluate(str(copy), "suite=preference", fails=1)
    remedy = ("export=true", "callbacks.checkpoint.every=N")
    names(capsys.readouterr().err, "checkpoint=final:", "finished", "policy/", "no checkpoint", remedy=remedy)


def test_a_step_that_was_not_saved(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inside(trained.parent):
        evaluate("run", "suite=preference", "checkpoint=6", fails=1)
    names(capsys.readouterr().err, "checkpoint=6:", "4, 5, 8")


def test_damaged_weights_are_named(copy: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy / "policy" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with inside(trained.parent):
        evaluate(str(copy), "suite=preference", fails=1)
    names(capsys.readouterr().err, f"policy={copy}/policy:", "model.safetensors", 200)


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("place", "wanted"), [("checkpoints/step-4/training.pt", "4"), ("policy/pytorch_model.bin", "final")]
)
def test_a_pickle_in_a_run_is_not_executed(
    place: str, wanted: str, copy: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the place of a checkpoint it is refused; in that of the export, the last checkpoint is taken instead."""
    sprung = tmp_path / "sprung"
    torch.save({"state_dict": Trap(sprung)}, copy / place)
    (copy / "policy" / "model.safetensors").unlink()
    with inside(trained.parent):
        evaluate(str(copy), "suite=preference", f"checkpoint={wanted}", fails=1 if wanted == "4" else None)
    assert not sprung.exists()
    if wanted == "4":
        names(capsys.readouterr().err, "step-4:", "damaged", "training.pt")
    torch.load(copy / place, weights_only=False)
    assert sprung.exists(), "a trap that would have sprung"


def rewrite(run: Path, **sections: dict) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name, news in sections.items():
        config[name] |= news
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("section", "news", "facts"),
    [
        ("model", {"_target_": "os.system", "command": "touch sprung"}, ["model", "os.system"]),
        ("data", {"source": {"_target_": "subprocess.run", "args": "touch sprung"}}, ["data.source", "subprocess.run"]),
        (
            "reference",
            {"_target_": "caldpo.config.run_lifecycle.write_json"},
            ["reference", "caldpo.config.run_lifecycle.write_json"],
        ),
        (
            "data",
            {"source": {"_target_": "caldpo.data.load.os.system", "command": "touch sprung"}},
            ["data.source", "caldpo.data.load.os.system"],
        ),
        ("model", {"trust_remote_code": True}, ["model.trust_remote_code:", "code"]),
        (
            "model",
            {
                "tokenizer": {
                    "_target_": "caldpo.models.hub_model.load_causal_lm",
                    "path": "x",
                    "trust_remote_code": True,
                }
            },
            ["model.tokenizer", "caldpo.models.hub_model.load_causal_lm"],
        ),
        (
            "data",
            {
                "source": {
                    "_target_": "caldpo.data.sources.local_files.LocalFiles",
                    "_args_": [{"_target_": "torch.load"}],
                }
            },
            ["data.source._args_:"],
        ),
        ("data", {"test": "${oc.env:HOME}.jsonl"}, ["data.test=${oc.env:HOME}.jsonl:"]),
    ],
)
def test_a_configuration_of_other_hands_runs_no_code(
    section: str, news: dict, facts: list[str], copy: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(copy, **{section: news})
    with inside(trained.parent):
        evaluate(str(copy), "suite=preference", fails=1)
        assert not Path("sprung").exists()
    printed = capsys.readouterr().err
    remedy = "value" if "test" in news else "allow_untrusted_code=true"
    names(printed, copy / "config.yaml", *facts, remedy=remedy)
    assert str(Path.home()) not in printed.replace("${oc.env:HOME}", "")


@pytest.mark.parametrize("section", SECTIONS)
def test_what_the_projects_own_configurations_build_may_be_built(section: str) -> None:
    """Every target of every yaml of the group at its place; the options of the group are not listed anywhere else."""
    known = {place: names for place, names in own_targets().items() if place.partition(".")[0] == section}
    for path in (conf_dir() / section).glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        target = content.get(section, content).get("_target_")
        assert target is None or target in known[section], path
    assert {target.split(".")[0] for targets in known.values() for target in targets} == {"caldpo"}


def test_a_configuration_of_another_version(copy: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(copy, model={"wings": 2})
    with inside(trained.parent):
        evaluate(str(copy), "suite=preference", fails=1)
    printed = capsys.readouterr().err
    names(printed, f"{copy}/config.yaml:", "model.wings:")


def test_an_adapter_is_evaluated_on_its_base(tmp_path: Path) -> None:
    """From policy/ (the adapter alone) and from the checkpoint: the run's own figures come out."""
    pytest.importorskip("peft")
    write_data(tmp_path)
    run = tiny_run(tmp_path, "adapter=lora", "adapter.rank=4", "callbacks.checkpoint.every=8", "optim.lr=0.05")
    logged = json.loads((run / "summary.json").read_text())["metrics"]["val/log_ratios/rejected"]
    assert logged < -0.1
    for checkpoint, folder in (("final", "evaluation"), ("8", "evaluation/step-8")):
        with inside(tmp_path):
            evaluate("run", "suite=preference", f"checkpoint={checkpoint}", "preference.resamples=10")
        content = json.loads((run / folder / "preference.json").read_text())
        assert content["measures"]["log_ratio_rejected"]["value"] == pytest.approx(logged, rel=1e-4)


@pytest.mark.parametrize(
    ("command", "weight", "facts"),
    [
        ("evaluate", "model.norm.weight", ["log-probs", "40 of 40 pairs", "test.jsonl:1"]),
        ("evaluate", "lm_head.weight", ["logits"]),
        (
            "generate",
            "lm_head.weight",
            ["logits", "sampling", "token 1", "2 of 2 prompts"],
        ),
    ],
)
def test_weights_that_are_not_finite_are_named_with_run_step_and_rows(
    copy: Path, trained: Path, command: str, weight: str, facts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy / "policy" / "model.safetensors"
    state = load_file(file)
    state[weight][5] = float("nan")
    save_file(state, file, {"format": "pt"})
    with inside(trained.parent):
        if command == "evaluate":
            evaluate(str(copy), "suite=preference", "preference.resamples=20", fails=1)
        else:
            call(generate, [str(copy), "count=2", "compare=false"], fails=1)
    names(capsys.readouterr().err, "copy at step 8", "policy's", *facts)


def test_a_checkpoint_has_the_spellings_that_an_export_takes(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("suite=preference", "preference.resamples=20")
    with inside(trained.parent):
        evaluate("run", "checkpoint=step-4", *quick)
        evaluate("run", "checkpoint=4", *quick)
        names(capsys.readouterr().out, "overwrite=true")  # measures anew what is there
        call(generate, ["run", "checkpoint=step-4", "count=1", "compare=false"], None)
    assert (trained / "evaluation/step-4/preference.json").is_file()
    assert (trained / "evaluation/step-4/generations.csv").is_file()


def test_policy_and_reference_are_probed_at_the_longest_held_out_sequence(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frequencies may change with length, and code that comes with a model may have them of a whole batch."""
    asked: list[int] = []
    monkeypatch.setattr(
        evaluated_policy, "require_valid_logprobs", lambda model, *, max_length, **_: asked.append(max_length)
    )
    rows = [json.loads(line) for line in (trained.parent / "test.jsonl").read_text().splitlines()]
    words = [len(r["prompt"].split()) + max(len(r[side].split()) for side in ("chosen", "rejected")) for r in rows]
    with inside(trained.parent):
        evaluate(str(trained), "suite=preference", "overwrite=true", f"output={tmp_path}", QUICK[0])
    assert asked == [max(words) + 1] * 2  # with the EOS
