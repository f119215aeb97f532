"""One look per loss, the same in every figure: colour, dash pattern and marker. No heavy imports.

``dpo`` and ``cal_dpo`` have a colour each and lie on top. Others share six colours by their place in :data:`LOSSES`,
so that a new one is appended and no other changes: of 42 no two have the same colour and dash pattern, or the same
colour and marker. A loss that is not listed takes a place by its name.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caldpo.report.grouping import RunGroup

# On white and on a dark page, in equal hues. Any two of a page differ by 15 or more (CIE 1976) for normal sight and for
# protanopia, deuteranopia and tritanopia (Machado et al. 2009), which tests/report/test_loss_style.py computes.
COLOURS = (
    ("#1a1a1a", "#f2f2f2"),
    ("#d55e00", "#ff8c3f"),
    ("#083b9a", "#6f9dff"),
    ("#4e9a70", "#a8ffc4"),
    ("#8700fe", "#9a55ff"),
    ("#df79e1", "#ffa8f0"),
    ("#79290b", "#b8705c"),
    ("#774371", "#8e8296"),
)
# as matplotlib writes them, and as plotly does
DASHES: tuple[tuple[Any, str], ...] = (
    ("-", "solid"),
    ((0, (5, 2)), "8px,3px"),
    ((0, (1.2, 1.6)), "2px,3px"),
    ((0, (6, 2, 1.5, 2)), "9px,3px,2px,3px"),
    ((0, (10, 3)), "15px,4px"),
    ((0, (10, 2, 1.5, 2)), "15px,3px,2px,3px"),
    ((0, (5, 2, 1.5, 2, 1.5, 2)), "8px,3px,2px,3px,2px,3px"),
)
MARKERS = (
    ("o", "circle"),
    ("s", "square"),
    ("D", "diamond"),
    ("^", "triangle-up"),
    ("v", "triangle-down"),
    ("P", "cross"),
    ("X", "x"),
    ("*", "star"),
    ("<", "triangle-left"),
    (">", "triangle-right"),
)
ON_TOP = ("dpo", "cal_dpo")  # the first colours, in this order
# Append only: what is here keeps its look. Losses that may draw equal curves are neighbours: their dashes differ.
LOSSES = (
    *ON_TOP,
    *("ipo", "cal_ipo", "slic", "cal_slic", "f_dpo", "cpo", "sft", "rso"),
    *("kto", "simpo", "orpo", "robust", "dpop", "r_dpo", "odpo", "exo", "nca", "bco"),
    *("aot", "apo_zero", "apo_down", "discopop", "sppo", "rebel", "rpo", "chi_po", "alpha_po", "simper"),
    *("bpo", "c2_dpo", "dpo_norm", "dpo_shift", "gpo", "h_dpo", "minor_dpo", "qrpo"),
)
_SHARED = len(COLOURS) - len(ON_TOP)
OVER = 3.0  # depth of these two; others lie from 2 to 3


@dataclass(frozen=True)
class Look:
    """Colour, dash pattern, marker, depth and width of one group, the same in every figure of a report."""

    colour: str
    on_dark: str  # the colour on a dark page
    pattern: int  # of DASHES
    mark: int  # of MARKERS
    zorder: float = 2.0
    width: float = 2.2

    @property
    def dash(self) -> Any:
        """The dash pattern for matplotlib."""
        return DASHES[self.pattern][0]

    @property
    def marker(self) -> str:
        """The marker for matplotlib."""
        return MARKERS[self.mark][0]


def looks(groups: Sequence[RunGroup]) -> list[Look]:
    """Choose a look per group: that of its loss, the same in every report.

    Variants of a loss have other dash patterns and markers, and shades of its colour where there are many of them or no
    other loss. Solid lines lie below dashed ones and are wider, those on top are the narrowest: of two equal curves
    both are seen.
    """
    variants = Counter(group.loss for group in groups)
    seen: Counter[str] = Counter()
    result = []
    for group in groups:
        number, pattern, mark = style_of(group.loss)
        variant, count = seen[group.loss], variants[group.loss]
        seen[group.loss] += 1
        shade = _shade(variant, count) if count > len(DASHES) or count == len(groups) else 0.5
        pattern = (pattern + variant) % len(DASHES)
        light, dark = (_shaded(colour, shade) for colour in COLOURS[number])
        if group.loss in ON_TOP:
            depth, width = OVER + number + pattern / len(DASHES), 1.6
        else:
            depth, width = 2 + pattern / len(DASHES), 2.2 if pattern else 2.8
        result.append(Look(light, dark, pattern, (mark + variant) % len(MARKERS), depth, width))
    return result


def colour_of(loss: str) -> str:
    """Return the colour of a loss on white, the same in every figure."""
    return COLOURS[style_of(loss)[0]][0]


def style_of(loss: str) -> tuple[int, int, int]:
    """Return the places of a loss's colour, dash pattern and marker."""
    if loss in ON_TOP:
        return (ON_TOP.index(loss),) * 3
    if loss in LOSSES:
        place = LOSSES.index(loss) - len(ON_TOP)
    else:
        place = len(LOSSES) + zlib.crc32(loss.encode()) % (_SHARED * len(DASHES) * len(MARKERS))
    # each step, and each return of a colour, has another pattern and another marker
    pattern = place + 2 * (place // _SHARED)
    mark = place + place // (_SHARED * len(MARKERS) // 2)
    return len(ON_TOP) + place % _SHARED, pattern % len(DASHES), mark % len(MARKERS)


def _shade(variant: int, count: int) -> float:
    """Of a variant, from pale (0) to dark (1); as many shades as can be told apart."""
    steps = min(count, 2 * len(DASHES))
    return 0.5 if steps == 1 else variant * steps // count / (steps - 1)


def _shaded(colour: str, shade: float) -> str:
    """From a pale (0) over the colour itself (1/2) to a dark one (1)."""
    target, share = (255, 0.55 * (1 - 2 * shade)) if shade < 0.5 else (0, 0.55 * (2 * shade - 1))
    rgb = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(value + share * (target - value)):02x}" for value in rgb)
