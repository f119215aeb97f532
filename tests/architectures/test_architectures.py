"""Every model type that transformers has for causal language modelling is exact, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures.examine import commands, examine, faults, write_pairs
from tests.architectures.families import ALL, FAST, NOT_CAUSAL, build

REFUSED = {"phimoe": "model.dropout", "cpmant": "model", "bert": "model.path"}


@pytest.mark.parametrize("kind", FAST)
def test_a_few_types(kind: str) -> None:
    row = examine(kind)
    assert not faults(row)
    if kind in REFUSED:
        assert row["refused"].startswith(f"{REFUSED[kind]}:")
    else:
        assert row["generation"] == "same"
    if kind in ("llama", "phi3", "falcon", "mixtral"):
        assert row["long rows"] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_all_types(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        model = build(kind, rate=0.3)
    except AssertionError as error:
        pytest.skip(f"transformers does not build it from its default settings made small: {error}")
    row = examine(kind)
    assert not faults(row)
    if kind in NOT_CAUSAL:
        assert "refused" in row
    monkeypatch.chdir(tmp_path)
    write_pairs()
    try:
        model.save_pretrained(tmp_path / kind)
    except RuntimeError as error:
        pytest.skip(f"transformers cannot save it as small as this: {error}")
    assert not faults(row | commands(tmp_path / kind))
