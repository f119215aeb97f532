"""How settings are told apart in figures, and how axes keep an outlier from crushing the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from caldpo.compare.grouping import Setting
from caldpo.files import whole_file

# Paul Tol's "muted" scheme (SRON/EPS/TN/09-002), made to be told apart under colour blindness, and black.
COLOURS = (
    "#332288",
    "#CC6677",
    "#117733",
    "#88CCEE",
    "#AA4499",
    "#DDCC77",
    "#882255",
    "#44AA99",
    "#000000",
    "#999933",
)
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = "osD^vPX*<>"  # a second cue beside the colour

# An axis turns logarithmic where its largest curve exceeds the median one by this factor.
CRUSHING = 6.0


_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "svg.hashsalt": "caldpo",  # the same runs give the same file
}


def drawing() -> AbstractContextManager[None]:
    """The context in which figures are made and saved: the project's style over whatever the user has."""
    return matplotlib.style.context(["default", _STYLE])


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure; the format follows the file's name. The same figure gives the same bytes."""
    form = path.suffix.removeprefix(".")
    with drawing(), whole_file(path) as file:
        figure.savefig(file, format=form, dpi=dpi, metadata={"Date": None} if form == "svg" else None)


@dataclass(frozen=True)
class Look:
    """Colour, dash pattern and marker of one setting, the same in every figure of a report."""

    colour: str
    dash: Any
    marker: str


def looks(settings: Sequence[Setting]) -> list[Look]:
    """A look per setting: a colour per loss and a dash pattern per variant of it.

    With a single loss, or more variants of one than there are dash patterns, a colour per setting.
    """
    losses = list(dict.fromkeys(setting.loss for setting in settings))
    variants = Counter(setting.loss for setting in settings)
    if len(losses) == 1 or max(variants.values(), default=0) > len(DASHES):
        return [_look(i, i // len(COLOURS)) for i in range(len(settings))]
    seen: Counter[str] = Counter()
    result = []
    for setting in settings:
        place = losses.index(setting.loss)
        result.append(_look(place, place // len(COLOURS) + seen[setting.loss]))
        seen[setting.loss] += 1
    return result


def linear_limit(extents: Sequence[float]) -> float | None:
    """Up to which absolute value a symmetric logarithmic axis is to be linear; None for a linear axis.

    Args:
        extents: largest absolute value of each curve.
    """
    sizes = sorted(size for size in extents if math.isfinite(size) and size > 0)
    if len(sizes) < 3:
        return None
    median = sizes[len(sizes) // 2]
    return round_up(median) if sizes[-1] > CRUSHING * median else None


def round_up(value: float) -> float:
    """The next of ..., 0.5, 1, 2, 5, 10, ... at or above a positive ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= value * (1 - 1e-9))


def set_symmetric_log(axes: Axes, limit: float, *, across: bool = False) -> None:
    """An axis that is linear within ``+-limit`` and logarithmic beyond, with readable ticks.

    Args:
        axes: whose.
        limit: of the linear part.
        across: the horizontal axis; else the vertical one.
    """
    axis, set_scale, set_limits = (
        (axes.xaxis, axes.set_xscale, axes.set_xlim) if across else (axes.yaxis, axes.set_yscale, axes.set_ylim)
    )
    low, high = axes.get_xlim() if across else axes.get_ylim()
    set_scale("symlog", linthresh=limit, linscale=1.0)
    set_limits(low, high)
    sizes = [limit * digit * 10**power for power in range(8) for digit in (1, 3)] + [limit / 2]
    ticks = [0.0, *sizes, *(-size for size in sizes)]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))


def grid_shape(panels: int) -> tuple[int, int]:
    """Rows and columns of small multiples."""
    columns = panels if panels <= 4 else min(5, -(-panels // 2))
    return -(-panels // columns), columns


def _look(colour: int, dash: int) -> Look:
    return Look(COLOURS[colour % len(COLOURS)], DASHES[dash % len(DASHES)], MARKERS[(colour + dash) % len(MARKERS)])
