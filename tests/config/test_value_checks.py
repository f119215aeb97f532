"""Which values fit which annotation, and what is said about those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from caldpo.config.bounds import (
    Finite,
    FolderName,
    Fraction,
    NonNegative,
    Positive,
    PositiveInt,
)
from caldpo.config.did_you_mean import suggest
from caldpo.config.value_checks import Section, describe, is_config_type, is_section, problem
from tests.helpers.messages import names

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (bool, [True, False], [0, 1, "true", None]),
        (int, [0, -3, 10**20], [True, 1.0, "1", None]),
        (float, [0.5, 1, NAN, INF], [False, "1.0", None]),
        (str, ["", "x"], [1, True, None, ["x"]]),
        (Finite, [-1e9, 0, 3], [NAN, INF, -INF, True, "0"]),
        (Positive, [1e-12, 1, 5.0], [0, 0.0, -1, NAN, INF, True, None]),
        (NonNegative, [0, 0.0, 2], [-1e-12, NAN]),
        (Fraction, [0, 1, 0.5], [-0.1, 1.0001, NAN]),
        (PositiveInt, [1, 7], [0, -1, 1.0, True]),
        (Annotated[float, Field(gt=0, lt=1)], [0.5], [0, 1]),
        (Literal["fixed", "scores"], ["fixed"], ["FIXED", 1, None]),
        (Literal[1, 2], [1], [True, 1.0, "1"]),
        (Positive | None, [None, 2], [0, "x"]),
        (Finite | Literal["pair"], [0, -1.5, "pair"], [NAN, "pairs", None]),
        (list[int], [[], [1, 2], (1,)], ["12", [1, "a"], [True], 1, {1: 2}]),
        (Sequence[str], [["a"]], ["a", [1]]),
        (tuple[float, float], [[0.9, 0.99]], [[0.9], [1, 2, 3], "ab"]),
        (tuple[int, ...], [[], [1, 2, 3]], [["a"]]),
        (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, [1], "a"]),
        (list, [[1, "a"]], ["a", 1]),
        (FolderName, ["train", "a-b_c.d", "loss=dpo,seed=0"], ["", "..", "a/b", "a..b", ".x", "-x", "a b"]),
    ],
)
def test_values_fit_or_not(annotation: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if problem(annotation, value)] == []
    assert [value for value in bad if not problem(annotation, value)] == []


@pytest.mark.parametrize(
    ("annotation", "value", "facts"),
    [
        (Positive, -1, ["number", "> 0"]),
        (Fraction, 2, ["number", ">= 0", "<= 1"]),
        (Finite, NAN, ["finite"]),
        (PositiveInt, 1.5, ["number", "> 0"]),
        (bool, 1, ["true", "false"]),
        (str, 7, ["text", "quote"]),
        (Positive | None, 0, ["number", "> 0", "null"]),
        (Literal["fixed", "scores"], "foo", ["fixed, scores"]),
        (Literal["fixed", "scores"], "fixd", ["fixed, scores", "did you mean fixed?"]),
        (
            Literal["linear", "cosine"] | None,
            "cosin",
            ["linear, cosine", "null", "did you mean cosine?"],
        ),
        (list[PositiveInt], [0], ["list", "number", "> 0"]),
        (tuple[float, float], [1], ["list", 2, "number"]),
        (dict[str, float], 1, ["mapping", "number"]),
    ],
)
def test_says_what_would_fit(annotation: Any, value: Any, facts: list[str]) -> None:
    names(problem(annotation, value), *facts)


class Tensor:
    """Stands for a type that no yaml can give."""


@pytest.mark.parametrize("annotation", [Tensor, Any, Tensor | None, Tensor | float, list[Tensor]])
def test_objects_are_left_to_code(annotation: Any) -> None:
    value = [Tensor()] if annotation == list[Tensor] else Tensor()
    assert problem(annotation, value) is None


def test_unions_with_an_object_are_no_config_types() -> None:
    assert not is_config_type(Tensor | float)
    assert is_config_type(float | None)


def test_sections_stand_for_classes_of_the_package() -> None:
    schedule = type("Schedule", (Section,), {})
    assert is_section(schedule | None)
    assert problem(schedule, {"_target_": "caldpo.optim.optimizer_base.Schedule"}) is None
    assert problem(schedule | None, None) is None
    names(problem(schedule, "linear"), "Schedule")


def test_describe_is_total_over_what_it_is_asked() -> None:
    assert describe(Tensor)
    assert describe(Annotated[float, "a comment"]) == describe(float)
    names(describe(float), "number")
    names(describe(str | list[Any] | dict[str, Any]), "text", "list", "mapping")


def test_suggests_only_what_is_near() -> None:
    assert suggest("betta", ["alpha", "beta"]).strip() == "(did you mean beta?)"
    assert suggest("qqq", ["alpha", "beta"]) == ""
    assert suggest("ture", [True, False]).strip() == "(did you mean true?)"
