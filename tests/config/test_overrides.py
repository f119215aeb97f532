"""Bare arguments become overrides that Hydra reads back as they were typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from caldpo.config.overrides import quoted, with_positional, with_quoted_paths

PRINTABLE = st.characters(exclude_categories=["Cc", "Cs"])


def read_back(override: str) -> str:
    """What Hydra and OmegaConf make of an override's value."""
    parsed = OverridesParser.create().parse_override(override)
    return OmegaConf.create({"value": parsed.value()}).value


@pytest.mark.parametrize(
    "text",
    [
        "outputs/x",
        "outputs/my sweep",
        "a,b",
        "outputs/demo/loss=dpo,seed=0",
        "it's",
        'a "quoted" one',
        "back\\slash",
        "ends in\\",
        "[list]",
        "{dict: 1}",
        "${loss.beta}",
        "1e3 ",
        "null ",
        "(x)",
        "null",
        "007",
        "a\\${b}",
        "ü/é",
        "C:\\my folder\\x",
    ],
)
def test_quoting_survives_hydras_grammar(text: str) -> None:
    assert read_back(f"sweep={quoted(text)}") == text


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="ab1.,=[]{}()$:'\"\\ /", min_size=1) | st.text(min_size=1, alphabet=PRINTABLE))
def test_quoting_survives_for_any_printable_text(text: str) -> None:
    assert read_back(f"sweep={quoted(text)}") == text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["a", "b", "band=sd"], ["sweep=['a','b']", "band=sd"]),
        (["band=sd", "[a, b]"], ["band=sd", "sweep=['a','b']"]),
        (["[a]"], ["sweep='a'"]),
        (["[loss=dpo,seed=0,'x']"], ["sweep=['loss=dpo,seed=0','x']"]),
        (["[a,b]", "c"], ["sweep=['a','b','c']"]),
        (["outputs/x", "band=sd"], ["sweep=outputs/x", "band=sd"]),
        (["[]"], ["[]"]),
        (["[x,y]"], ["sweep='[x,y]'"]),
    ],
)
def test_several_bare_arguments_are_a_list(
    typed: list[str], meant: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("loss=dpo,seed=0", "[x,y]"):  # a comma in the name of a folder divides nothing
        Path(name).mkdir()
    assert with_positional(typed, "sweep", several=True) == meant


def test_the_first_bare_argument_is_the_positional() -> None:
    assert with_positional(["outputs/x", "format=csv"], "sweep") == ["sweep=outputs/x", "format=csv"]
    assert with_positional(["format=csv", "a b"], "sweep") == ["format=csv", "sweep='a b'"]
    assert with_positional(["format=csv"], "sweep") == ["format=csv"]
    assert with_positional(["one", "two"], "sweep") == ["sweep='one'", "two"]


def test_a_folder_with_an_equals_sign_is_bare_where_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loss=dpo").mkdir()
    assert with_positional(["loss=dpo"], "sweep") == ["sweep='loss=dpo'"]
    assert with_positional(["loss=ipo"], "sweep") == ["loss=ipo"]


def test_a_run_of_a_sweep_may_be_named_as_it_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = "sweep/loss=dpo,seed=0/policy"
    Path(folder).mkdir(parents=True)
    (found,) = with_quoted_paths([f"model.path={folder}"])
    assert found.startswith("model.path=")
    assert read_back(found) == folder
    untouched = ["loss=dpo,ipo", "seed=0,1", "run=nowhere/loss=dpo,seed=0", folder, f"x={'w,' * 5000}", "+a.b=[1,2]"]
    assert with_quoted_paths(untouched) == untouched
    assert with_positional([f"x={'w,' * 5000}"], "run") == [f"x={'w,' * 5000}"]
