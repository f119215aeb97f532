"""The workspace of reward dynamics as W&B is sent it; nothing is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from caldpo import wandb_workspace
from caldpo.metric_definitions import CHOSEN_LOG_RATIO, LOSS
from caldpo.wandb_workspace import NAME, STEP, main
from tests.helpers.messages import names


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    workspaces = pytest.importorskip("wandb_workspaces.workspaces", reason="the [workspaces] extra is not installed")
    views: list[Any] = []

    def upsert(view: Any) -> dict[str, Any]:
        views.append(view)
        return {"upsertView": {"view": {"name": "nw-1", "id": "1"}}}

    monkeypatch.setattr(workspaces.internal, "upsert_view2", upsert)
    monkeypatch.setattr(workspaces.Workspace, "url", property(lambda view: f"https://w/{view.entity}/{view.project}"))
    return views


def test_panels_average_the_runs_of_a_loss(sent: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    main(["team/project"])
    assert capsys.readouterr().out.splitlines()[-1] == "https://w/team/project"
    (view,) = sent
    assert (view.entity, view.project, view.display_name) == ("team", "project", NAME)
    sections = json.loads(view.spec.model_dump_json(by_alias=True))["section"]["panelBankConfig"]["sections"]
    held_out, training = sections[:2]
    shown = {panel["config"]["metrics"][0]: panel["config"] for panel in held_out["panels"]}
    assert {CHOSEN_LOG_RATIO.held_out.name, LOSS.held_out.name} < shown.keys()
    assert all(name.startswith("val/") for name in shown)
    assert {CHOSEN_LOG_RATIO.name, "grad_norm"} < {panel["config"]["metrics"][0] for panel in training["panels"]}
    for config in shown.values():
        assert config["xAxis"] == STEP
        assert (config["groupBy"], config["groupAgg"], config["groupArea"]) == ("loss_name.value", "mean", "stddev")


def test_the_team_may_be_wandbs_own(sent: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_ENTITY", "mine")
    main(["project"])
    assert sent[0].entity == "mine"


@pytest.mark.parametrize("place", ["project", "/project", "team/"])
def test_a_place_without_a_part_is_refused(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    with pytest.raises(SystemExit) as end:
        main([place])
    assert end.value.code == 2
    names(capsys.readouterr().err, "TEAM")


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(wandb_workspace.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["team/project"])
    names(capsys.readouterr().err, "caldpo[workspaces]")
