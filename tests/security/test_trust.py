"""A configuration of other hands builds the project's own classes, whichever section they are for."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.config.run_dir import register_resolvers
from caldpo.errors import CaldpoError
from caldpo.security.trusted_config import announce_foreign, own_targets, require_own_code, require_plain_overrides
from caldpo.training_run import SECTIONS
from tests.evaluation.runs import evaluate, inside

FILE = Path("run/config.yaml")


@functools.cache
def composed(*overrides: str) -> dict[str, Any]:
    """The resolved configuration of a training; not to be changed."""
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    return {name: OmegaConf.to_container(cfg[name], resolve=True) for name in SECTIONS}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize(
    "override", [f"{group}={name}" for group in ("model", "experiment") for name in options(group)]
)
def test_every_configuration_of_the_project_is_its_own(override: str) -> None:
    needed = ["model.tokenizer=x"] if override == "model=random" else []
    require_own_code(composed(override, *needed), SECTIONS, FILE)


@pytest.mark.parametrize("group", ["loss", "reference", "adapter", "optim", "trainer", "logger"])
def test_every_option_of_a_group_is_its_own(group: str) -> None:
    for name in options(group):
        content = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())
        require_own_code({group: content}, [group], FILE)


@pytest.mark.parametrize("section", SECTIONS)
def test_no_other_class_is_built_in_any_section(section: str) -> None:
    """Neither at the section's own place nor below it, nor a class of the project's that belongs elsewhere."""
    plain = composed()
    for target in (
        "os.system",
        "caldpo.utils.atomic_io.write_text",
        "caldpo.callbacks.true_reward.os.system",
        "builtins.eval",
    ):
        for place in ((), ("extra",), ("deep", "er")):
            config = {**plain, section: {**plain[section], **nested(place, {"_target_": target})}}
            with pytest.raises(CaldpoError, match="which no configuration of caldpo builds there") as refused:
                require_own_code(config, SECTIONS, FILE)
            assert target in str(refused.value)
            assert "allow_untrusted_code=true" in str(refused.value)


def nested(place: tuple[str, ...], content: dict[str, Any]) -> dict[str, Any]:
    return content if not place else {place[0]: nested(place[1:], content)}


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize(
    ("news", "said"),
    [
        ({"_args_": ["x"]}, "_args_: is no key that a run writes"),
        ({"extra": {"_partial_": True}}, "_partial_: is no key that a run writes"),
        ({"extra": [{"_convert_": "all"}]}, "_convert_: is no key that a run writes"),
        ({"extra": [[{"_target_": "os.system"}]]}, "built by os.system"),
        ({"extra": "${oc.env:HOME}"}, "refers to something outside the run"),
        ({"extra": {"trust_remote_code": True}}, "brings Python code of its own"),
    ],
)
def test_nothing_else_is_passed_on(section: str, news: dict[str, Any], said: str) -> None:
    plain = composed()
    with pytest.raises(CaldpoError, match=said):
        require_own_code({**plain, section: {**plain[section], **news}}, SECTIONS, FILE)


def test_a_class_belongs_to_its_place() -> None:
    """A callback of the project's is none in the place of another, nor a source of data a model."""
    plain = composed()
    assert own_targets("callbacks")["callbacks.samples"] == {"caldpo.callbacks.sample_table.SampleTable"}
    samples, oracle = plain["callbacks"]["samples"], plain["callbacks"]["oracle"]
    with pytest.raises(CaldpoError, match=r"callbacks\.samples is built by caldpo\.callbacks\.oracle"):
        require_own_code({**plain, "callbacks": {"samples": oracle, "oracle": samples}}, ["callbacks"], FILE)
    with pytest.raises(CaldpoError, match="model is built by"):
        require_own_code({"model": plain["data"]["source"]}, ["model"], FILE)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("hydra.searchpath=[file:///tmp/theirs]", "Hydra's own"),
        ("+hydra/callbacks=theirs", "Hydra's own"),
        ("hydra.job_logging.formatters.f={class:theirs.Code}", "Hydra's own"),
        ("hydra.job_logging.handlers.file.filename=/home/me/.bashrc", "Hydra's own"),
        ("++hydra.job.env_set.PYTHONPATH=theirs", "Hydra's own"),
        ("hydra.run.dir=/elsewhere", "Hydra's own"),
        ("+loss@hydra.callbacks.x=dpo", "Hydra's own"),
        ("+loss@_global_=dpo", "Hydra's own"),
        ("~hydra.callbacks", "Hydra's own"),
        ("allow_untrusted_code=true", "whoever starts the run"),
        ("++allow_untrusted_code=true", "whoever starts the run"),
        ("resume=elsewhere", "whoever starts the run"),
        ("replay=batch.pt", "whoever starts the run"),
        ("loss._target_=os.system", "names a class"),
        ("+data.source={_target_: os.system}", "names a class"),
        ("+data.source={a: [{b: {_target_: os.system}}]}", "names a class"),
        ('+data.source={"_target_": os.system}', "is no override"),
        ("loss={_target_: os.system},{_target_: os.popen}", "names a class"),
        ("+x=[[{_args_: [1]}]]", "names a class"),
        ("data.train=${oc.env:HOME}/x", "outside the run"),
        ("data.train='${oc.env:HOME}'", "outside the run"),
        ("data.train=$\\{oc.env:HOME\\}/x", "outside the run"),
        ("data.train='$\\{oc.env:HOME}'", "outside the run"),
        ("data.train=\\$\\{oc.env:HOME\\}", "outside the run"),
        ("+x={a: [{b: $\\{oc.env:HOME\\}}]}", "outside the run"),
        ("+x.y={$\\{oc.env:HOME\\}: 1}", "outside the run"),
        ("+x.y=1,$\\{oc.env:HOME\\}", "outside the run"),
        ("+x.y=str($\\{oc.env:HOME\\})", "outside the run"),
        ("experiment=[/abs/x]", "by a list"),
        ("+experiment=[demo]", "by a list"),
        ("+experiment={a: /abs/x}", "by a list"),
        ("+experiment=[/abs/x],[demo]", "by a list"),
        ("loss=../../theirs/evil", "by a path"),
        ("not an override", "is no override"),
        ("x={_target_", "is no override"),
    ],
)
def test_overrides_of_other_hands(override: str, said: str) -> None:
    with pytest.raises(CaldpoError, match=said) as refused:
        require_plain_overrides(["seed=1", override], FILE)
    assert refused.value.key == str(FILE)


def test_overrides_of_ones_own() -> None:
    own = ["loss=cal_dpo", "loss.beta=0.1", "+experiment=demo", "~callbacks.oracle", "data.train=../pairs.jsonl"]
    own += ["optim.schedule={decay: linear, warmup_ratio: 0.1}", "adapter.target_modules=[q_proj,v_proj]", "x=null"]
    own += ["model.path=./models/../models/a", "seed=0,1", "data.train='a b,c.jsonl'", "model.tokenizer=.."]
    require_plain_overrides(own, FILE)


def test_the_remedy_is_the_callers() -> None:
    with pytest.raises(CaldpoError) as refused:
        require_own_code({"loss": {"_target_": "x.Y"}}, ["loss"], FILE, remedy="start it anew")
    assert refused.value.remedy == "start it anew"


def test_what_a_trusted_run_has_built_is_announced(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["reference"] = {"_target_": "collections.OrderedDict"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with inside(trained.parent):
        evaluate(
            str(run), "suite=preference", "allow_untrusted_code=true", fails=1
        )  # it is no reference, but it is built
    told = capsys.readouterr().err
    assert f"allow_untrusted_code: {run}/config.yaml has reference built by collections.OrderedDict" in told
    announce_foreign(composed(), SECTIONS, FILE)
    assert capsys.readouterr().err == ""
