"""``caldpo.build_loss``, and how Python values become overrides that Hydra reads back."""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import Any

import pytest
import torch

import caldpo
from caldpo.config.overrides import override, parse_overrides
from tests.helpers.messages import refused


def test_a_loss_by_its_name_has_its_yamls_settings() -> None:
    logps = caldpo.PairLogps(*(torch.tensor([x]) for x in (-20.0, -31.5, -22.0, -30.0, 9.0, 14.0)))
    plain, small = caldpo.build_loss("cal_dpo"), caldpo.build_loss("cal_dpo", beta=0.25, calibration_weight=0.5)
    contrast = math.log1p(math.exp(-3.5))  # a = 2, b = -1.5
    assert plain(logps).loss.item() == pytest.approx(contrast + (2 - 5) ** 2 + (-1.5 + 5) ** 2)
    assert small(logps).loss.item() == pytest.approx(contrast + 0.5 * ((2 - 2) ** 2 + (-1.5 + 2) ** 2))


@pytest.mark.parametrize(
    ("name", "settings", "facts"),
    [
        ("caldpo", {}, {"key": "loss", "value": "caldpo", "remedy": "cal_dpo"}),
        ("cal_dpo", {"beta": -1}, {"key": "loss.beta", "value": -1}),
        ("cal_dpo", {"bta": 1}, {"key": "loss.bta"}),
    ],
)
def test_mistakes_name_the_key(name: str, settings: dict[str, Any], facts: dict[str, Any]) -> None:
    with refused(**facts):
        caldpo.build_loss(name, **settings)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -3, 1e-6, 0.1, math.inf),
        *(
            "dpo",
            "",
            "null",
            "True",
            "12",
            "1e5",
            "nan",
            "a b",
            "it's",
            "x/y.z",
            "a,b",
            "é",
            "two\nlines",
            "\\",
            "a'\\'b",
        ),
        [1, "a", None],
        {"a": 1, "_target_": "x.Y", "d/train.jsonl": 0.5, "two words": [1, {"b": "c d"}]},
    ],
    ids=repr,
)
def test_a_value_is_read_back(value: Any) -> None:
    (read,) = parse_overrides(None, [override("some.key", value)])
    assert (read.key_or_group, read.value(), type(read.value())) == ("some.key", value, type(value))


def test_text_that_looks_like_an_interpolation_stays_text() -> None:
    cfg = caldpo.compose([override("notes", "costs ${x}")])
    assert cfg.notes == "costs ${x}"


def test_paths_and_tuples_are_plain_and_other_objects_are_refused() -> None:
    (read,) = parse_overrides(None, [override("k", (PurePosixPath("a/b"), 1))])
    assert read.value() == ["a/b", 1]
    for value in (torch.ones(1), {1: 2}, {"a": object()}):
        with refused(key="k", remedy="number"):
            override("k", value)
