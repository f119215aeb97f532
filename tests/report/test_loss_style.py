"""Looks of losses: fixed, of every loss, told apart also without all colours, and DPO and Cal-DPO on top."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from caldpo.config.conf_dir import conf_dir
from caldpo.report.grouping import RunGroup
from caldpo.report.loss_style import COLOURS, DASHES, LOSSES, MARKERS, ON_TOP, looks, style_of

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
SIGHTS = {
    "all colours": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    ratios = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    x, y, z = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("page", [0, 1])
def test_colours_are_told_apart(sight: str, page: int) -> None:
    seen = [lab(SIGHTS[sight] @ linear(colours[page])) for colours in COLOURS]
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) > 15


def test_colours_are_seen_on_their_page() -> None:
    assert min(contrast(light, "#ffffff") for light, _ in COLOURS) > 2.5
    assert min(contrast(dark, "#14171c") for _, dark in COLOURS) > 4


def test_every_loss_has_a_look_of_its_own() -> None:
    assert set(LOSSES) == {path.stem for path in (conf_dir() / "loss").glob("*.yaml")}
    styles = [style_of(loss) for loss in LOSSES]
    assert len({(colour, dash) for colour, dash, _ in styles}) == len(LOSSES)
    assert len({(colour, mark) for colour, _, mark in styles}) == len(LOSSES)
    assert all(a[1] != b[1] for a, b in itertools.pairwise(styles)), "neighbours may draw equal curves"
    assert (len({dash for dash, _ in DASHES}), len({mark for mark, _ in MARKERS})) == (len(DASHES), len(MARKERS))


def test_dpo_and_cal_dpo_lie_on_top_in_colours_of_their_own() -> None:
    groups = [RunGroup(loss, loss, ()) for loss in (*LOSSES, "own")]
    by_loss = dict(zip((*LOSSES, "own"), looks(groups), strict=True))
    others = [look for loss, look in by_loss.items() if loss not in ON_TOP]
    assert by_loss["cal_dpo"].zorder > by_loss["dpo"].zorder > max(look.zorder for look in others)
    assert max(by_loss[loss].width for loss in ON_TOP) < min(look.width for look in others), "what is below is seen"
    assert not {by_loss[loss].colour for loss in ON_TOP} & {look.colour for look in others}
    solid = [look for look in others if look.dash == "-"]
    assert max(look.zorder for look in solid) < min(look.zorder for look in others if look not in solid)


def test_the_first_losses_keep_their_looks() -> None:
    known = [looks([RunGroup(loss, loss, ()), RunGroup("x", "x", ())])[0] for loss in ("dpo", "cal_dpo", "ipo")]
    assert [(look.colour, look.marker) for look in known] == [("#1a1a1a", "o"), ("#d55e00", "s"), ("#083b9a", "o")]
