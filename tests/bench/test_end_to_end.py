"""TRL's trainer and this project's training command, run for real on a tiny model: they compute the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caldpo.benchmark import main


def test_both_trainers_have_the_same_losses_and_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps with a learning rate at which the losses move, so that the updates have to agree as well."""
    pytest.importorskip("trl", reason="needs the extra 'bench'")
    monkeypatch.chdir(tmp_path)
    main(
        [
            "benchmark_model=tiny",
            "variants=[trl,caldpo]",
            "repeats=1",
            "steps=2",
            "micro_batch_size=4",
            "lr=1e-3",
            "tolerance=[1e-5,1e-5]",
            "hydra.run.dir=out",
        ]
    )
    result = json.loads(Path("out/benchmark.json").read_text())
    (trl,), (own,) = result["rounds"]["trl"], result["rounds"]["caldpo"]
    assert len(trl["losses"]) == len(own["losses"]) == 3
    assert own["losses"] == pytest.approx(trl["losses"], rel=1e-5)
    assert own["grad_norms"] == pytest.approx(trl["grad_norms"], rel=1e-5)
    assert trl["losses"][0] == pytest.approx(0.6931472, rel=1e-6)
    assert abs(trl["losses"][2] - trl["losses"][0]) > 1e-4, "nothing was learned, so nothing was compared"
    assert own["step_digests"] == trl["step_digests"]
    assert len(set(own["step_digests"])) == 3
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["caldpo"]["speed"] == pytest.approx(trl["seconds"] / own["seconds"])
    assert rows["caldpo"]["memory"] == pytest.approx(trl["memory"]["peak"] / own["memory"]["peak"])
    assert 0 < rows["caldpo"]["peak_share"] < 1
    estimate = json.loads(Path("out/runs/caldpo-estimate/estimate.json").read_text())
    assert rows["caldpo"]["estimated_bytes"] == estimate["memory_bytes"]["total"] > 0
    assert rows["trl"]["estimated_bytes"] is None


@pytest.mark.slow
def test_they_do_on_a_base_in_four_bits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command fails by itself where losses or gradient norms differ by more than its tolerance."""
    for package, extra in (("trl", "bench"), ("bitsandbytes", "qlora")):
        pytest.importorskip(package, reason=f"needs the extra '{extra}'")
    monkeypatch.chdir(tmp_path)
    bits = (
        "benchmark_model.hidden_size=64",
        "benchmark_model.intermediate_size=128",
        "benchmark_model.lora_rank=4",
        "benchmark_model.base_bits=4",
    )
    short = ("variants=[trl,caldpo]", "repeats=1", "steps=1", "micro_batch_size=4", "lr=1e-3", "tolerance=[1e-5,1e-4]")
    main(["benchmark_model=tiny", *bits, *short, "hydra.run.dir=out"])
    result = json.loads(Path("out/benchmark.json").read_text())
    (trl,), (own,) = result["rounds"]["trl"], result["rounds"]["caldpo"]
    assert own["grad_norms"] == pytest.approx(trl["grad_norms"], rel=1e-4)
    assert trl["losses"][0] == pytest.approx(0.6931472, rel=1e-6)
    assert abs(trl["losses"][-1] - trl["losses"][0]) > 1e-5


@pytest.mark.slow
def test_the_estimate_is_near_the_measured_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, in a process of its own; and by count the same steps take more."""
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "intermediate_size": 352, "vocab_size": 16000}
    variants = "variants=[caldpo,caldpo_by_count]"
    shape = ["benchmark_model=body", *(f"benchmark_model.{key}={value}" for key, value in sizes.items())]
    main([*shape, variants, "repeats=1", "steps=2", "micro_batch_size=16", "hydra.run.dir=out"])
    rows = {row["name"]: row for row in json.loads(Path("out/benchmark.json").read_text())["rows"]}
    assert rows["caldpo"]["peak_bytes"] == pytest.approx(rows["caldpo"]["estimated_bytes"], rel=0.15)
    assert rows["caldpo"]["peak_bytes"] < rows["caldpo_by_count"]["peak_bytes"]
