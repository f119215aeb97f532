"""Foreign text in documents: what it cannot become, and that it is still what it was."""

from __future__ import annotations

import csv
import io
import subprocess

import pytest
from jinja2 import UndefinedError

from caldpo.report.escaping import (
    Markdown,
    cell,
    code,
    command,
    listed,
    one_line,
    plain,
    render,
    shell_block,
    spreadsheet_cell,
)
from caldpo.report.statistics import Estimate
from caldpo.report.table_cells import markdown_table, spread
from caldpo.utils.text_format import number, with_interval


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\n c", "a b c"),
        ("<img src=x>", "&lt;img src=x>"),
        ("![a](http://x)", "![a\\](http://x)"),
        ("*a* _b_ c_d `e`", "\\*a\\* \\_b\\_ c_d \\`e\\`"),
        ("&lt; & b", "&amp;lt; & b"),
        ("$x$", "\\$x\\$"),  # else mathematics
        ("# head", "\\# head"),
        ("- item", "\\- item"),
        ("1. item", "1\\. item"),
        ("\x1b[31m\u202e", "\ufffd[31m\ufffd"),
        ("\ud800", "\ufffd"),
        ("0.90 [0.81, 0.95]", "0.90 [0.81, 0.95]"),
        ("-", "-"),
    ],
)
def test_plain_text_is_shown_as_it_is(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert plain(plain(text)) == shown, "once is enough"


def test_a_code_span_is_not_left() -> None:
    assert code("loss=dpo <b> *x*") == "`loss=dpo <b> *x*`"
    assert code("a`b<c>") == "a\\`b&lt;c>"
    assert code("a\nb") == "`a b`"


def test_a_table_keeps_its_cells() -> None:
    table = markdown_table(["a|b", "c"], [["x|y\nz", Markdown("**bold**")], ["a\\|b", "<b>"]])
    assert table.splitlines()[0] == "| a\\|b | c |"
    assert table.splitlines()[2] == "| x\\|y z | **bold** |"
    assert table.splitlines()[3] == "| a\\\\\\|b | &lt;b> |"
    assert cell("a|b") == "a\\|b"


def test_a_template_escapes_every_value_that_is_no_markdown(tmp_path) -> None:
    template = tmp_path / "x.md.j2"
    template.write_text(
        "# {{ name }}\n\n\n\n{% for v in values %}\n- {{ v }}\n{% endfor %}\n{{ values | listed(1) }}, {{ left }}\n"
    )
    text = render(template, name="a\n# b <c>", values=["*x*", Markdown("**y**"), 3], left=None)
    assert text == "# a # b &lt;c>\n\n- \\*x\\*\n- **y**\n- 3\n\\*x\\* and 2 more, -\n"
    with pytest.raises(UndefinedError):
        render(template, name="a", values=[])


def test_a_list_is_escaped_item_by_item() -> None:
    assert listed(["a<b", Markdown("`c`")]) == "a&lt;b, `c`"
    assert isinstance(listed([]), Markdown)


NASTY = ["a b", "x;rm -rf y", "$(id)`id`", "it's", "a\\b", "line\nbreak\ttab\\'", "é😀\u2028", "", "#x", "~a=!b"]


def test_a_command_is_one_line_of_the_same_arguments() -> None:
    line = command(["printf", "%s\\0", *NASTY])
    assert "\n" not in line
    done = subprocess.run(["bash", "-c", line], capture_output=True, env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"})
    assert done.stdout.decode().split("\0")[:-1] == NASTY


def test_a_fence_is_longer_than_any_within() -> None:
    assert shell_block(["a"]) == "```sh\na\n```"
    assert shell_block(["a ````"]).startswith("`````sh\n")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "=cmd|' /C calc'!A0", "\t=1", "\r\n=1"])
def test_text_never_begins_a_formula(text: str) -> None:
    written = io.StringIO()
    csv.writer(written).writerow([spreadsheet_cell(text)])
    (row,) = csv.reader(io.StringIO(written.getvalue()))
    assert row[0].startswith("'")
    assert row[0][1:] == one_line(text)


@pytest.mark.parametrize("value", [-1.5, 0, None, float("nan"), True])
def test_numbers_stay_numbers(value: object) -> None:
    assert spreadsheet_cell(value) is value


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.5, 0.5, 0.5, "0.500 [0.500, 0.500]"),
        (2e-7, 1e-7, 3e-7, "2.00e-07 [1.00e-07, 3.00e-07]"),
        (1.0, 1.0, 1.0, "1.00 [1.00, 1.00]"),
        (0.0, 0.0, 0.0, "0 [0, 0]"),
        (-12.34, -12.34, -12.34, "-12.3 [-12.3, -12.3]"),
        (0.859, 0.816, 0.898, "0.859 [0.816, 0.898]"),
        (0.5, 0.5, 0.5 + 1e-16, "0.500000 [0.500000, 0.500000]"),
        (0.5, float("nan"), 1.0, "0.500 [not a number, 1.00]"),
        (0.0, -1e308, 1e308, "0 [-1.00e+308, 1.00e+308]"),
    ],
)
def test_intervals_as_text(value: float, low: float, high: float, text: str) -> None:
    assert with_interval(value, low, high) == text


def test_numbers_beyond_a_table_are_powers_of_ten() -> None:
    assert number(1e300) == "1.00e+300"
    assert number(3e-9) == "3.00e-09", "not 0.000000"
    assert number(1230.0) == "1230"
    assert spread(Estimate(1e300, 2e299, 3)) == "1.00e+300 ± 2.0e+299"
    assert spread(Estimate(0.5, 1e-12, 3)) == "0.500 ± 1.0e-12"
