"""Style of figures of matplotlib, and axes on which no outlier crushes the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from caldpo.utils.atomic_io import atomic_file

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


def set_square_root(axes: Axes) -> None:
    """Make the axis across one of square roots, on which a path may begin at 0; below it, of their negatives."""
    axes.set_xscale("function", functions=(_root, lambda root: np.sign(root) * np.square(root)))


def _root(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(values) * np.sqrt(np.abs(values))


def grid_shape(panels: int) -> tuple[int, int]:
    """Return rows and columns of small multiples."""
    columns = panels if panels <= 4 else min(5, -(-panels // 2))
    return -(-panels // columns), columns
