"""A checkpoint is accepted for resume where the run's inputs are the same."""

from __future__ import annotations

from typing import Any

import pytest

from caldpo.checkpointing import checkpoint_plan
from caldpo.checkpointing.checkpoint_plan import CheckpointPlan, environment_note, require_same
from tests.helpers.messages import names, refused


def manifest(**changed: Any) -> dict[str, Any]:
    return {"step": 4, "identity": {"the tokenizer": "1"}, "versions": {"torch": "2.13"}} | changed


def plan(calls: list[str]) -> CheckpointPlan:
    def inputs() -> dict[str, str]:
        calls.append("inputs")
        return {"the tokenizer": "1"}

    return CheckpointPlan(inputs, {"torch": "2.13"}, lambda: calls.append("cut"))


def test_an_accepted_checkpoint_cuts_the_files_of_the_first_rank() -> None:
    calls: list[str] = []
    assert plan(calls).accept(manifest(), first_rank=True) is None
    assert calls == ["inputs", "cut"]
    other = plan(calls)
    assert other.accept(manifest(versions={"torch": "2.12"}), first_rank=False) is not None
    assert other.identity == {"the tokenizer": "1"}
    assert calls == ["inputs", "cut", "inputs"], "digests are computed once"


def test_nothing_is_cut_where_a_checkpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    with refused("the tokenizer", key="resume"):
        plan(calls).accept(manifest(identity={"the tokenizer": "2"}), first_rank=True)
    monkeypatch.setattr(checkpoint_plan, "all_gather", lambda step: [step, 8])
    with refused(4, 8, key="resume"):
        plan(calls).accept(manifest(), first_rank=True)
    assert "cut" not in calls


def test_changed_inputs_are_refused_by_name() -> None:
    require_same({"a": "1"}, {"a": "1", "b": "2"})
    with refused("a and c", key="resume", remedy="config.yaml"):
        require_same({"a": "1", "b": "2", "c": "3"}, {"a": "9", "b": "2"})
    with refused("the tokens of the training pairs", key="resume") as stopped:
        saved = {"the tokens of the training pairs": "1", "the texts of the training pairs": "1"}
        require_same(saved, dict.fromkeys(saved, "2"))
    assert "the texts" not in str(stopped.value)


def test_a_changed_environment_is_noted() -> None:
    assert environment_note({"torch": "2.13"}, {"torch": "2.13"}) is None
    note = environment_note({"torch": "2.13", "python": "3.11"}, {"torch": "2.14", "python": "3.11"})
    assert note is not None
    names(note, "torch was 2.13, is 2.14")
    assert "python" not in note
