"""A composed configuration held against the signatures of its targets."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from caldpo.config.validation import check_config, find_problems
from caldpo.errors import CaldpoError
from tests.helpers.messages import names

pytestmark = pytest.mark.usefixtures("package")

LOSS = {"_target_": "caldpo.parts.Loss", "beta": 0.1, "targets": "fixed"}
OPTIM = {
    "_target_": "caldpo.parts.Optim",
    "lr": 1e-3,
    "schedule": {"_target_": "caldpo.parts.Schedule", "decay": "cosine"},
}
TOP = {"name": "demo", "seed": 0, "reward_beta": 0.1}
SETTINGS = "caldpo.parts.Settings"


def config(loss: dict[str, Any] | None = None, optim: dict[str, Any] | None = None, **top: Any) -> DictConfig:
    return OmegaConf.create({**TOP, "loss": LOSS | (loss or {}), "optim": OPTIM | (optim or {}), **top})


def problems(cfg: DictConfig) -> dict[str, str]:
    return {p.key: p.message for p in find_problems(cfg, SETTINGS)}


def test_a_good_configuration_passes() -> None:
    check_config(config(), SETTINGS)


@pytest.mark.parametrize(
    ("cfg", "key", "facts"),
    [
        (config(loss={"beta": -1}), "loss.beta", ["> 0"]),
        (config(loss={"beta": float("nan")}), "loss.beta", ["> 0"]),
        (config(loss={"targets": "fixd"}), "loss.targets", ["fixed, scores", "did you mean fixed?"]),
        (config(loss={"betta": 1}), "loss.betta", ["did you mean beta?"]),
        (config(loss={"label_smoothing": 1}), "loss.label_smoothing", []),
        (config(loss={"beta": "???"}), "loss.beta", ["> 0"]),
        (config(optim={"schedule": "linear"}), "optim.schedule", ["Schedule"]),
        (config(name="../x"), "name", ["slash"]),
        (config(seed=-1), "seed", [">= 0"]),
        (config(sed=1), "sed", ["did you mean seed?"]),
        (config(extra={"a": 1}), "extra", []),
        (config(loss={"_target_": "caldpo.parts.Los"}), "loss._target_", ["did you mean Loss?"]),
        (config(loss={"beta": "${nowhere}"}), "loss.beta", ["nowhere"]),
        (config(optim={"betas": {"x": 1}}), "optim.betas", ["did you mean beta1?"]),
    ],
)
def test_each_mistake_is_named_by_its_full_key(cfg: DictConfig, key: str, facts: list[str]) -> None:
    found = problems(cfg)
    assert list(found) == [key]
    names(found[key], *facts)


def test_nested_sections_and_lists_of_sections() -> None:
    nested = config(optim={"schedule": {"_target_": "caldpo.parts.Schedule", "decay": "cos"}})
    assert list(problems(nested)) == ["optim.schedule.decay"]
    listed = config(losses=[LOSS, LOSS | {"beta": 0}])
    assert list(problems(listed)) == ["losses[1].beta"]


def test_all_problems_in_one_error() -> None:
    with pytest.raises(CaldpoError) as caught:
        check_config(config(loss={"beta": 0, "targets": "x", "foo": 1}, sed=3), SETTINGS)
    text = str(caught.value)
    assert text.startswith("4 ")
    for key in ("loss.beta=0", "loss.targets=x", "loss.foo", "sed"):
        assert f"\n  {key}:" in text
    names(text, "beta, targets")


def test_one_problem_is_an_error_about_its_key() -> None:
    with pytest.raises(CaldpoError) as caught:
        check_config(config(loss={"beta": 0}), SETTINGS)
    assert (caught.value.key, caught.value.value) == ("loss.beta", "0")


def test_a_required_argument_has_to_be_in_the_yaml_unless_code_supplies_it() -> None:
    hub = {"_target_": "caldpo.parts.Model"}
    for absent in (hub, {**hub, "path": "???"}):
        found = problems(config(model=absent))
        assert list(found) == ["model.path"]
        names(found["model.path"], "text")
    assert problems(config(model={**hub, "_partial_": True})) == {}
    # policy and loss are objects; a number has to come from the yaml
    module = {"_target_": "caldpo.parts.Module"}
    found = problems(config(module=module))
    assert list(found) == ["module.scale"]
    names(found["module.scale"], "number")


def test_interpolations_are_resolved_and_a_bad_value_is_told_once() -> None:
    good = config(reward_beta="${loss.beta}")
    assert problems(good) == {}
    bad = config(loss={"beta": -2}, reward_beta="${loss.beta}")
    assert list(problems(bad)) == ["loss.beta"]
    missing = config(loss={"beta": "???"}, reward_beta="${loss.beta}")
    assert list(problems(missing)) == ["loss.beta"]


def test_the_value_behind_an_interpolation_is_shown_with_its_source() -> None:
    (found,) = find_problems(config(seed="${optim.lr}"), SETTINGS)
    assert found.value == "0.001 (from ${optim.lr})"


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-value")
    cfg = config(loss={"beta": "${oc.env:MY_TOKEN}", "targets": "s3cr3t-value", "api_key": "abc"})
    with pytest.raises(CaldpoError) as caught:
        check_config(cfg, SETTINGS)
    assert "s3cr3t" not in str(caught.value)
    names(caught, "loss.beta=${oc.env:MY_TOKEN}:", "> 0")


def test_emptied_groups_and_other_packages_pass() -> None:
    assert problems(config(logger=None, callbacks={})) == {}
    assert problems(config(extra={"_target_": "torch.optim.AdamW", "anything": 1})) == {}
