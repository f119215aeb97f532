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
from caldpo.config.hydra_session import register_with_hydra
from caldpo.config.trusted_config import announce_foreign, own_targets, require_own_code, require_plain_overrides
from caldpo.config.validation import NEEDED
from caldpo.security.secrets import redact_text
from tests.evaluation.runs import evaluate, inside
from tests.helpers.messages import names, refused

FILE = Path("run/config.yaml")


@functools.cache
def composed(*overrides: str) -> dict[str, Any]:
    """The resolved configuration of a training; not to be changed."""
    register_with_hydra()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    return {name: OmegaConf.to_container(cfg[name], resolve=True) for name in NEEDED}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml") if path.stem != "base")


@pytest.mark.parametrize(
    "override", [f"{group}={name}" for group in ("model", "experiment") for name in options(group)]
)
def test_every_configuration_of_the_project_is_its_own(override: str) -> None:
    needed = ["model.tokenizer=x"] if override == "model=random" else []
    require_own_code(composed(override, *needed), NEEDED, FILE)


@pytest.mark.parametrize("group", ["loss", "reference", "adapter", "optim", "trainer", "logger"])
def test_every_option_of_a_group_is_its_own(group: str) -> None:
    for name in options(group):
        content = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())
        section = {name: content} if group == "logger" else content  # of which several may be chosen
        require_own_code({group: section}, [group], FILE)


@pytest.mark.parametrize("section", NEEDED)
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
            with refused(".".join((section, *place)), target, key=FILE, remedy="allow_untrusted_code=true"):
                require_own_code(config, NEEDED, FILE)


def nested(place: tuple[str, ...], content: dict[str, Any]) -> dict[str, Any]:
    return content if not place else {place[0]: nested(place[1:], content)}


@pytest.mark.parametrize("section", NEEDED)
@pytest.mark.parametrize(
    ("news", "place", "facts", "remedy"),
    [
        ({"_args_": ["x"]}, "_args_", [], "allow_untrusted_code=true"),
        ({"extra": {"_partial_": True}}, "extra._partial_", [], "allow_untrusted_code=true"),
        ({"extra": [{"_convert_": "all"}]}, "_convert_", [], "allow_untrusted_code=true"),
        ({"extra": [[{"_target_": "os.system"}]]}, "extra", ["os.system"], "allow_untrusted_code=true"),
        ({"extra": "${oc.env:HOME}"}, "extra", ["${oc.env:HOME}"], "value"),
        ({"extra": {"trust_remote_code": True}}, "extra.trust_remote_code", ["code"], "allow_untrusted_code=true"),
    ],
)
def test_nothing_else_is_passed_on(
    section: str, news: dict[str, Any], place: str, facts: list[str], remedy: str
) -> None:
    plain = composed()
    with refused(FILE, section, place, *facts, remedy=remedy):
        require_own_code({**plain, section: {**plain[section], **news}}, NEEDED, FILE)


def test_a_class_belongs_to_its_place() -> None:
    """A callback of the project's is none in the place of another, nor a source of data a model."""
    plain = composed()
    assert own_targets()["callbacks.samples"] == {"caldpo.callbacks.sample_table.SampleTable"}
    samples, oracle = plain["callbacks"]["samples"], plain["callbacks"]["oracle"]
    with refused("callbacks.samples", oracle["_target_"], key=FILE, remedy="allow_untrusted_code=true"):
        require_own_code({**plain, "callbacks": {"samples": oracle, "oracle": samples}}, ["callbacks"], FILE)
    with refused("model", plain["data"]["source"]["_target_"], key=FILE, remedy="allow_untrusted_code=true"):
        require_own_code({"model": plain["data"]["source"]}, ["model"], FILE)


@pytest.mark.parametrize(
    ("override", "term"),
    [
        ("hydra.searchpath=[file:///tmp/theirs]", "Hydra"),
        ("+hydra/callbacks=theirs", "Hydra"),
        ("hydra.job_logging.formatters.f={class:theirs.Code}", "Hydra"),
        ("hydra.job_logging.handlers.file.filename=/home/me/.bashrc", "Hydra"),
        ("++hydra.job.env_set.PYTHONPATH=theirs", "Hydra"),
        ("hydra.run.dir=/elsewhere", "Hydra"),
        ("+loss@hydra.callbacks.x=dpo", "Hydra"),
        ("+loss@_global_=dpo", "Hydra"),
        ("~hydra.callbacks", "Hydra"),
        ("allow_untrusted_code=true", None),
        ("++allow_untrusted_code=true", None),
        ("resume=elsewhere", None),
        ("replay=batch.pt", None),
        ("loss._target_=os.system", "class"),
        ("+data.source={_target_: os.system}", "class"),
        ("+data.source={a: [{b: {_target_: os.system}}]}", "class"),
        ('+data.source={"_target_": os.system}', "override"),
        ("loss={_target_: os.system},{_target_: os.popen}", "class"),
        ("+x=[[{_args_: [1]}]]", "class"),
        ("data.train=${oc.env:HOME}/x", "outside"),
        ("data.train='${oc.env:HOME}'", "outside"),
        ("data.train=$\\{oc.env:HOME\\}/x", "outside"),
        ("data.train='$\\{oc.env:HOME}'", "outside"),
        ("data.train=\\$\\{oc.env:HOME\\}", "outside"),
        ("+x={a: [{b: $\\{oc.env:HOME\\}}]}", "outside"),
        ("+x.y={$\\{oc.env:HOME\\}: 1}", "outside"),
        ("+x.y=1,$\\{oc.env:HOME\\}", "outside"),
        ("+x.y=str($\\{oc.env:HOME\\})", "outside"),
        ("modifier=[wpo,../x]", "list"),
        ("modifier=[/abs/x]", "list"),
        ("logger=[wandb,../x]", "list"),
        ("experiment=[/abs/x]", "list"),
        ("+experiment=[demo]", "list"),
        ("+experiment={a: /abs/x}", "list"),
        ("+experiment=[/abs/x],[demo]", "list"),
        ("loss=../../theirs/evil", "path"),
        ("not an override", "override"),
        ("x={_target_", "override"),
    ],
)
def test_overrides_of_other_hands(override: str, term: str | None) -> None:
    with refused(
        redact_text(override), *([term] if term else []), key=FILE, remedy="allow_untrusted_code=true"
    ) as error:
        require_plain_overrides(["seed=1", override], FILE)
    assert "seed=1" not in str(error.value), "which is one's own"


def test_overrides_of_ones_own() -> None:
    own = ["loss=cal_dpo", "loss.beta=0.1", "+experiment=demo", "~callbacks.oracle", "data.train=../pairs.jsonl"]
    own += [
        "optim.schedule={decay: linear, warmup_ratio: 0.1}",
        "adapter.target_modules=[q_proj,v_proj]",
        "x=null",
        "modifier=[wpo,nll]",
        "logger=[wandb,tensorboard]",
    ]
    own += ["model.path=./models/../models/a", "seed=0,1", "data.train='a b,c.jsonl'", "model.tokenizer=.."]
    require_plain_overrides(own, FILE)


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
    names(told, "allow_untrusted_code:", run / "config.yaml", "reference", "collections.OrderedDict")
    announce_foreign(composed(), NEEDED, FILE)
    assert capsys.readouterr().err == ""
