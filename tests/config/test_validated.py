"""Arguments checked when a constructor or function is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pytest
from omegaconf import OmegaConf

from caldpo.config.bounds import Positive, PositiveInt
from caldpo.config.signatures import resolved_hints, validated
from caldpo.errors import CaldpoError
from tests.helpers.messages import names

if TYPE_CHECKING:
    from nowhere import Model


class Loss:
    """A class in the manner of a loss."""

    @validated
    def __init__(
        self,
        beta: Positive,
        targets: Literal["fixed", "scores"] = "fixed",
        model: Model | None = None,
        *layers: PositiveInt,
        betas: tuple[float, float] | None = None,
        later: Later | None = None,
    ) -> None:
        self.beta, self.targets, self.model, self.betas = beta, targets, model, betas


class Later:
    """Defined after the annotation that names it."""


@validated
@dataclass(frozen=True, slots=True)
class Settings:
    """A dataclass in the manner of the run's settings."""

    seed: PositiveInt
    name: str = "x"
    made: list[int] = field(default_factory=list)


@validated
def scale(value: float, by: Positive = 1.0) -> float:
    """A plain function."""
    return value * by


def test_good_arguments_pass_through_unchanged() -> None:
    model = object()
    loss = Loss(0.1, "scores", model, betas=(0.9, 0.99))
    assert (loss.beta, loss.targets, loss.model, loss.betas) == (0.1, "scores", model, (0.9, 0.99))
    assert scale(3.0, by=2) == 6.0
    assert Settings(seed=1).made == []


@pytest.mark.parametrize(
    ("call", "key", "value", "fact"),
    [
        (lambda: Loss(-1), "beta", -1, "> 0"),
        (lambda: Loss(beta=True), "beta", True, "> 0"),
        (lambda: Loss(1, "fixd"), "targets", "fixd", "did you mean fixed?"),
        (lambda: Loss(1, betas=OmegaConf.create([1])), "betas", [1], 2),
        (lambda: scale(1.0, by=0), "by", 0, "> 0"),
        (lambda: Settings(0), "seed", 0, "> 0"),
        (lambda: Settings(seed=1, name=3), "name", 3, "text"),
    ],
)
def test_bad_arguments_are_named(call, key, value, fact) -> None:
    with pytest.raises(CaldpoError) as caught:
        call()
    assert (caught.value.key, caught.value.value) == (key, value)
    names(caught.value.message, fact)


def test_a_wrong_call_stays_a_type_error() -> None:
    with pytest.raises(TypeError, match="beta"):
        Loss()
    with pytest.raises(TypeError, match="gamma"):
        Loss(0.1, gamma=1)


def test_defaults_are_not_checked() -> None:
    @validated
    def unbounded(beta: Positive = float("inf")) -> float:
        return beta

    assert unbounded() == float("inf")
    with pytest.raises(CaldpoError):
        unbounded(float("inf"))


def test_names_for_type_checkers_alone_leave_the_others_checked() -> None:
    hints = resolved_hints(Loss.__init__)
    assert "model" not in hints
    assert {"beta", "targets", "betas"} <= hints.keys()


def test_keeps_name_and_docstring() -> None:
    assert (scale.__name__, scale.__doc__) == ("scale", "A plain function.")
