"""The mode that reference=auto chooses and prints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from caldpo.models.adapters import Lora
from caldpo.reference import auto_reference
from caldpo.reference.auto_reference import Auto
from caldpo.reference.disabled_adapter import AdapterReference
from caldpo.reference.frozen_model import FrozenReference
from caldpo.reference.precomputed import Precomputed, PrecomputedReference
from tests.helpers.messages import names
from tests.helpers.tiny import tiny_model
from tests.reference.contexts import TRAIN, make_context


@pytest.mark.parametrize(
    ("seen", "adapted", "own_start", "needed", "mode"),
    [
        (TRAIN, False, True, ("train", "test"), "precomputed"),
        (3 * TRAIN, True, True, ("train", "test"), "precomputed"),
        (TRAIN - 2, False, True, ("train", "test"), "precomputed"),  # 21 of 23 is about all
        (TRAIN // 2, False, True, ("train", "test"), "frozen"),
        (TRAIN // 2, True, True, ("train", "test"), "adapter"),
        (TRAIN // 2, True, False, ("train", "test"), "frozen"),  # another model is not under the adapter
        (2, False, True, ("test",), "precomputed"),
    ],
)
def test_choice(
    seen: int, adapted: bool, own_start: bool, needed: tuple[str, ...], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Lora(rank=2).apply(tiny_model()) if adapted else tiny_model()
    context = make_context(policy, needed_splits=needed, pairs_seen=seen, reload=tiny_model)
    monkeypatch.setattr(auto_reference, "Frozen", lambda *_: SimpleNamespace(build=lambda _: "frozen"))
    spec = Auto(None if own_start else "another")
    monkeypatch.setattr(Precomputed, "build", lambda *_: "precomputed")
    built = spec.build(context)
    assert mode == ("adapter" if isinstance(built, AdapterReference) else built)


def test_it_says_what_it_chose_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = Auto(cache=str(tmp_path / "cache"), spot_check=0)
    assert isinstance(spec.build(make_context(pairs_seen=10)), FrozenReference)
    (line,) = capsys.readouterr().out.splitlines()
    names(line, "reference=auto", "frozen", "10 pairs of 23")
    lora = make_context(Lora(rank=2).apply(tiny_model()), pairs_seen=10, reload=tiny_model)
    assert isinstance(spec.build(lora), AdapterReference)
    reference = spec.build(make_context(pairs_seen=1000))
    assert isinstance(reference, PrecomputedReference)
    lines = capsys.readouterr().out.splitlines()
    for line, mode, pairs in zip(lines, ("adapter", "precomputed"), ("10 pairs", "1,000 pairs"), strict=True):
        names(line, "reference=auto", mode, f"{pairs} of 23")
    assert not (tmp_path / "cache").exists()
    reference.prepare()
    assert len(list((tmp_path / "cache").glob("*/manifest.json"))) == 2
