"""``report.html``: the comparison as one file that opens by double click, without network and without a server.

Whatever comes from a run's folder is text: the template escapes it, the page's script shows it as text, JSON within the
page has no ``<``, and the policy in the page's head lets no other script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from caldpo.report import comparison_facts as facts
from caldpo.report import report_rows
from caldpo.report.escaping import one_line
from caldpo.report.evaluation_results import suites_of
from caldpo.report.evaluation_tables import faults
from caldpo.report.grouping import RunGroup
from caldpo.report.loss_style import DASHES, MARKERS, ON_TOP, looks
from caldpo.report.markdown_report import BANDS
from caldpo.report.page import page_curves, page_points, page_tables
from caldpo.report.page.headline_sentence import sentences
from caldpo.report.page.live_groups import drawn_groups
from caldpo.report.page.page_numbers import limited, sortable
from caldpo.report.page.page_samples import LinesOf, samples
from caldpo.report.planned_runs import not_begun
from caldpo.report.statistics import BandKind
from caldpo.report.unlike_runs import unlike
from caldpo.utils.text_format import counted, number

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent
_SCRIPTS = (
    "page_state.js",
    "page_figures.js",
    "page_draw.js",
    "page_controls.js",
)  # as they load
_FOLLOWS = "page_live.js"
_SHOWN_AT_FIRST = 12  # settings; of more the others are switched on by the reader
_ROWS = 100  # of a figure's text alternative
_CODE = re.compile(r"`([^`]*)`")


@dataclass(frozen=True)
class Live:
    """How a page follows its runs.

    Args:
        version: of what it shows, as the server tells it.
        lines_of: reads a file of samples, as ``page_samples.read_lines``.
        bare: without scripts and style, to be put into a page that has them.
    """

    version: str
    lines_of: LinesOf
    bare: bool = False


def render_page(
    groups: Sequence[RunGroup],
    folders: Sequence[Path],
    kind: BandKind,
    tasks: Sequence[Sequence[str]] = (),
    failed: Sequence[str] = (),
    live: Live | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        groups: all, also those of which no run finished.
        folders: that were compared.
        kind: what the bands of the curves show.
        tasks: overrides that started each sweep, where they are known.
        failed: which figures of the report could not be drawn, and why.
        live: how the page follows its runs; None of a page that is a file.
    """
    measured = [group for group in groups if group.finished]
    runs = [run for group in groups for run in group.runs]
    drawn = [(group, "") for group in measured] if live is None else drawn_groups(groups)
    data = page_data([group for group, _ in drawn], kind, live.lines_of if live else None)
    for entry, (_, state) in zip(data["groups"], drawn, strict=True):
        entry["state"] = state
    scripts = _scripts(live)
    shown = page_tables.columns(measured)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            policy=_policy(scripts, live),
            live=live,
            scripts=[Markup(script) for script in scripts],
            style=Markup("" if live and live.bare else (_FOLDER / "page.css").read_text(encoding="utf-8")),
            title=", ".join(path.name for path in folders),
            headline=facts.headline(measured) if measured else "no finished run",
            seeds=facts.count_text(group.seeds for group in measured) if measured else "",
            sentences=sentences(groups, not_begun(folders, len(runs))),
            unlike=unlike(groups),
            band=BANDS[kind],
            data=data,
            groups=[group for group, _ in drawn],
            alternatives=_words([group for group, _ in drawn], data),
            columns=shown,
            rows=page_tables.table_rows(groups, shown),
            formulas=report_rows.formula_rows(measured),
            facts=report_rows.fact_rows(groups),
            annotated=report_rows.annotated_rows(runs),
            suites=[(suite, [_inline(fault) for fault in faults(measured, suite)]) for suite in suites_of(measured)],
            settings=page_tables.settings_rows(groups),
            unfinished=report_rows.unfinished_rows(groups),
            remarks=report_rows.remark_rows(groups, failed),
            sweeps=report_rows.sweep_commands(tasks),
            commands=report_rows.run_commands(runs),
            thinned=page_curves.thinned_count(data["panels"]),
            limit=_SHOWN_AT_FIRST,
        )
    )


def _scripts(live: Live | None) -> list[str]:
    if live and live.bare:
        return []
    from plotly.offline import get_plotlyjs  # half a second

    names = [*_SCRIPTS[:-1], *([_FOLLOWS] if live else []), _SCRIPTS[-1]]  # it keeps the sections as they came
    return [get_plotlyjs(), *((_FOLDER / name).read_text(encoding="utf-8") for name in names)]


def page_data(groups: Sequence[RunGroup], kind: BandKind, lines_of: LinesOf | None = None) -> dict[str, Any]:
    """Return what the page's script draws, as plain JSON values: the groups and their looks, curves and points.

    ``lines_of`` reads a file of samples as ``page_samples.read_lines``, which None takes.
    """
    panels = page_curves.panels(groups, kind)
    return {
        "groups": [
            {
                "label": group.label,
                "on_top": group.loss in ON_TOP,
                "seeds": group.seeds,
                "runs": [run.name for run in group.runs],
                "colours": [look.colour, look.on_dark],
                "dash": DASHES[look.pattern][1],
                "symbol": MARKERS[look.mark][1],
                "width": look.width,
                "depth": look.zorder,
            }
            for group, look in zip(groups, looks(groups), strict=True)
        ],
        "shown": shown_at_first(groups),
        "panels": panels,
        "logarithmic": any(panel["crushed"] for panel in panels),
        "frontier": page_points.frontier(groups),
        "calibration": page_points.calibration(groups),
        "displacement": page_points.displacement(groups),
        "terms": page_curves.terms(groups),
        "samples": samples(groups, lines_of),
    }


def shown_at_first(groups: Sequence[RunGroup]) -> list[int]:
    """Places of the groups that are drawn when the page opens: all of few, of many the first, and DPO and Cal-DPO."""
    if len(groups) <= 2 * _SHOWN_AT_FIRST:
        return list(range(len(groups)))
    first = sorted(range(len(groups)), key=lambda place: groups[place].loss not in ON_TOP)
    return sorted(first[:_SHOWN_AT_FIRST])


def _words(groups: Sequence[RunGroup], data: dict[str, Any]) -> dict[str, Any]:
    """Return the text alternative of each figure by its id: a header, the first rows, and how many more there are."""
    ends = ["setting", "first", "last", "lowest", "highest"]
    tables = {f"panel-{panel['id']}": (ends, page_curves.panel_rows(panel, groups)) for panel in data["panels"]}
    if data["frontier"]:
        header = ["setting", "KL (nats)", "true reward", "checkpoints"]
        tables["frontier"] = header, page_points.frontier_rows(groups)
    if data["calibration"]:
        header = ["setting", "calibration error", "claimed: observed probability"]
        tables["calibration"] = header, page_points.calibration_rows(groups, data["calibration"])
    if data["displacement"]:
        header = ["setting", "side", *(f"{level:.0%}" for level in data["displacement"]["levels"])]
        tables["displacement"] = header, page_points.displacement_rows(groups, data["displacement"])
        header = ["setting", "tokens: share of pairs"]
        tables["lengths"] = header, page_points.length_rows(groups, data["displacement"])
    if data["terms"]:
        rows = [
            [groups[entry["group"]].label, name, number(share[0] or 0.0), number(share[-1] or 0.0)]
            for entry in data["terms"]
            for name, share in entry["shares"].items()
        ]
        tables["terms"] = ["setting", "term", "first share", "last share"], rows
    return {name: (header, *limited(rows, _ROWS)) for name, (header, rows) in tables.items()}


def _policy(scripts: Sequence[str], live: Live | None) -> str:
    """Write a Content-Security-Policy under which the page's own scripts run, and nothing else is run or fetched.

    A page that follows its runs may ask the server that it is from.
    """
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    own = " ".join(f"'sha256-{digest}'" for digest in digests)
    parts = (f"script-src {own}", "style-src 'unsafe-inline'", "img-src data: blob:", "base-uri 'none'")
    asks = ("connect-src 'self'",) if live else ()
    return "; ".join(("default-src 'none'", *parts, *asks, "form-action 'none'"))


def _inline(markdown: str) -> Markup:
    """Convert a sentence of the report, which is Markdown of code spans and escapes alone, to HTML."""
    pieces = _CODE.split(markdown)
    texts = [escape(html.unescape(re.sub(r"\\(.)", r"\1", piece))) for piece in pieces]
    return Markup("").join(
        Markup("<code>{}</code>").format(pieces[i]) if i % 2 else texts[i] for i in range(len(pieces))
    )


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=lambda value: one_line(value) if type(value) is str else value,  # not of Markup
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["counted"] = counted
    environment.filters["sortable"] = sortable
    environment.filters["verbatim"] = escape  # of a command each space counts
    return environment
