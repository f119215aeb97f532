"""Yaml and JSON of a run's files: within bounds, and flat."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from caldpo.utils.yaml_io import flatten, read_json, read_yaml
from tests.helpers.messages import names


def test_flatten() -> None:
    tree = yaml.safe_load("{loss: {beta: 0.1, schedule: {}}, layers: [1, 2], 3: {4: null}}")
    assert flatten(tree) == {"loss.beta": 0.1, "loss.schedule": {}, "layers": [1, 2], "3.4": None}
    assert flatten([1]) == flatten({}) == flatten(None) == {}


def test_what_a_run_writes_is_read(tmp_path: Path) -> None:
    path, tree = tmp_path / "a.yaml", {"é": [1, None, {"b": 0.5}], "text": "*a &b <<: [", "n": float("inf")}
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    assert read_yaml(path) == tree
    path.write_text("")
    assert read_yaml(path) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"a: [1", "line 1"),
        (b"a: \xff", "utf-8"),
        (b"a: &x [1]\nb: *x", "line 2"),
        (b"&x [*x]", "line 1"),
        (b"a:\n" + b"- " * 101, "line 2 .*100"),
        (b"!!int ''", r"\btag\b"),
        (b"!!bool x", r"\btag\b"),
        (b"!!timestamp x", r"\btag\b"),
        (b"a: 2020-99-99", "month"),
        (b"a: 0x_", "invalid literal"),
        (b"a\n---\nb", "document"),
        (b"!!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_what_no_run_writes_is_refused_on_one_line(tmp_path: Path, text: bytes, why: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=why) as refusal:
        read_yaml(path)
    assert len(str(refusal.value).splitlines()) == 1


def test_depth_that_libyaml_does_not_survive(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("[" * 300_000)
    code = f"from pathlib import Path; from caldpo.utils.yaml_io import read_yaml; read_yaml(Path({str(path)!r}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1, "and not by a signal"
    names(ended.stderr, "ValueError", "line 1", 100)


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": ["\\ud83d\\ude00", "\\ud800"], "\\udfff": NaN}')
    found = read_json(path)
    assert found["a"] == ["\U0001f600", "?"]
    assert list(found) == ["a", "?"]
    for text in ("[" * 100_000, "9" * 5000, "{"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"."):
            read_json(path)
