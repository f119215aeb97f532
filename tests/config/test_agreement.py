"""What a command says of a whole configuration stands beside what is wrong with single values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from omegaconf import DictConfig, OmegaConf

from caldpo.config.preflight import _disagreements
from caldpo.config.validation import Problem
from caldpo.errors import CaldpoError

CONFIG = OmegaConf.create({"a": 1})
FIRST = Problem("a", "1", "is not there")


def refuses(cfg: DictConfig) -> Iterator[Problem]:
    yield FIRST
    raise CaldpoError("contradicts a", key="b", value=2, remedy="leave it out")


def breaks(cfg: DictConfig) -> Iterator[Problem]:
    yield FIRST
    raise TypeError("b is no number")


def test_problems_and_an_error_are_told_together() -> None:
    assert _disagreements(CONFIG, refuses, doubtful=False) == [
        FIRST,
        Problem("b", "2", "contradicts a", "leave it out"),
    ]


@pytest.mark.parametrize("agree", [refuses, breaks])
def test_of_values_known_to_be_bad_the_consequences_are_not_told(agree) -> None:
    assert _disagreements(CONFIG, agree, doubtful=True) == [FIRST]


def test_a_fault_of_the_check_itself_is_not_hidden() -> None:
    with pytest.raises(TypeError, match="b is no number"):
        _disagreements(CONFIG, breaks, doubtful=False)


def test_checks_that_raise_alone_return_nothing() -> None:
    assert _disagreements(CONFIG, lambda cfg: None, doubtful=False) == []
