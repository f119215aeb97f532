"""Style of figures: a look per group that tells it from the others, and axes on which no outlier crushes the rest."""

from __future__ import annotations

import colorsys
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from caldpo.report.grouping import RunGroup
from caldpo.utils.atomic_io import atomic_file

# Paul Tol's "muted" scheme (SRON/EPS/TN/09-002), made to be told apart under colour blindness, and black; with the
# place of a dash pattern. Losses that may draw equal curves have different ones.
FIXED = {
    "dpo": ("#332288", 0),
    "f_dpo": ("#CC6677", 1),
    "ipo": ("#117733", 2),
    "slic": ("#88CCEE", 3),
    "cpo": ("#AA4499", 1),
    "sft": ("#DDCC77", 2),
    "cal_dpo": ("#882255", 0),
    "cal_ipo": ("#44AA99", 1),
    "cal_slic": ("#000000", 2),
    "rso": ("#999933", 3),
}
DASHES: tuple[Any, ...] = ("-", (0, (5, 2.5)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)))
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
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.hashsalt": "caldpo",  # the same runs give the same file
}


def drawing() -> AbstractContextManager[None]:
    """Return the context in which figures are made and saved: the project's style over whatever the user has."""
    return matplotlib.style.context(["default", _STYLE])


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure; the format follows the file's name. The same figure gives the same bytes.

    Its layout is made at the first time. An engine that is still there would have everything drawn twice.
    """
    form = path.suffix.removeprefix(".")
    with drawing(), atomic_file(path) as file:
        if (engine := figure.get_layout_engine()) is not None:
            FigureCanvasAgg(figure).figure.set_dpi(dpi)  # one renderer measures texts and draws
            engine.execute(figure)
            figure.set_layout_engine(None)
        if form == "svg":
            figure.savefig(file, format=form, dpi=dpi, metadata={"Date": None})
        else:
            figure.savefig(file, format=form, dpi=dpi, pil_kwargs={"compress_level": 3})  # for half of the time


@dataclass(frozen=True)
class Look:
    """Colour, dash pattern, marker, depth and width of one group, the same in every figure of a report."""

    colour: str
    dash: Any
    marker: str
    zorder: float = 2.0
    width: float = 1.7


def looks(groups: Sequence[RunGroup]) -> list[Look]:
    """Choose a look per group: a colour and a dash pattern per loss, the same in every report.

    Variants of a loss have other dash patterns and markers, and shades of its colour where there are many of them or no
    other loss. Solid lines lie below dashed and dotted ones, so that of two equal curves both are seen.
    """
    variants = Counter(group.loss for group in groups)
    seen: Counter[str] = Counter()
    result = []
    for group in groups:
        colour, place, dash = _of_loss(group.loss)
        variant, count = seen[group.loss], variants[group.loss]
        seen[group.loss] += 1
        shade = _shade(variant, count) if count > len(DASHES) or count == len(groups) else 0.5
        dash = (dash + variant) % len(DASHES)
        marker = MARKERS[(place + variant) % len(MARKERS)]
        width = 1.7 if dash else 2.4  # a line below others shows at their sides
        result.append(Look(_shaded(colour, shade), DASHES[dash], marker, 2 + dash / len(DASHES), width))
    return result


def colour_of(loss: str) -> str:
    """Return the colour of a loss, the same in every figure."""
    return _of_loss(loss)[0]


def _of_loss(loss: str) -> tuple[str, int, int]:
    """Colour, and places among markers and dash patterns; a loss without fixed ones takes them by its name."""
    if loss in FIXED:
        colour, dash = FIXED[loss]
        return colour, list(FIXED).index(loss), dash
    number = zlib.crc32(loss.encode())
    hue = number % 997 / 997
    return to_hex(colorsys.hls_to_rgb(hue, 0.42, 0.6)), number % len(MARKERS), number // len(MARKERS) % len(DASHES)


def _shade(variant: int, count: int) -> float:
    """Of a variant, from pale (0) to dark (1); as many shades as can be told apart."""
    steps = min(count, len(FIXED))
    return 0.5 if steps == 1 else variant * steps // count / (steps - 1)


def _shaded(colour: str, shade: float) -> str:
    """From a pale (0) over the colour itself (1/2) to a dark one (1)."""
    rgb = np.array(to_rgb(colour))
    towards, share = (np.ones(3), 0.55 * (1 - 2 * shade)) if shade < 0.5 else (np.zeros(3), 0.55 * (2 * shade - 1))
    return to_hex(rgb + share * (towards - rgb))


def linear_limit(extents: Sequence[float]) -> float | None:
    """Find up to which absolute value a symmetric logarithmic axis is to be linear; None for a linear axis.

    ``extents``: largest absolute value of each curve.
    """
    sizes = sorted(size for size in extents if math.isfinite(size) and size > 0)
    if len(sizes) < 3:
        return None
    median = sizes[len(sizes) // 2]
    return round_up(median) if sizes[-1] > CRUSHING * median else None


def round_up(value: float) -> float:
    """Return the next of ..., 0.5, 1, 2, 5, 10, ... at or above a positive ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= value * (1 - 1e-9))


def set_symmetric_log(axes: Axes, limit: float, *, across: bool = False) -> None:
    """Make the vertical axis, or that ``across``, linear within ``+-limit`` and logarithmic beyond; readable ticks."""
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
    """Return rows and columns of small multiples."""
    columns = panels if panels <= 4 else min(5, -(-panels // 2))
    return -(-panels // columns), columns
