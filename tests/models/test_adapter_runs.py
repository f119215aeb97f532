"""Runs with adapters of every kind and initialisation: killed and resumed they equal runs that were never killed."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from caldpo.config.summary_file import read_summary
from caldpo.models.hub_model import load_causal_lm
from tests.evaluation.runs import write_data
from tests.helpers.messages import refused
from tests.resume.child import Kill
from tests.resume.runs import BASE, outcome, train

pytest.importorskip("peft", reason="needs the extra 'peft'")

GIVEN = (*BASE, "model.hidden_size=64", "trainer.max_steps=6")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and an adapter that SFT has made."""
    folder = tmp_path_factory.mktemp("adapters")
    write_data(folder)
    ended = train(folder, *GIVEN, "loss=sft", "adapter=lora", "hydra.run.dir=sft")
    assert ended.codes == (0,), ended.said
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("adapter=dora", "reference=adapter"),
        ("adapter=qlora", "reference=precomputed"),
        ("adapter=qlora", "adapter.bits=8", "reference=adapter"),
        ("adapter=lora", "adapter.init_from=sft/policy", "reference=precomputed"),
        ("adapter=lora", "adapter.init_from=sft/policy", "adapter.init_mode=reference", "reference=precomputed"),
        ("adapter=lora", "adapter.init_from=sft/policy", "adapter.init_mode=reference", "reference=adapter"),
    ],
    ids=" ".join,
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(more: tuple[str, ...], place: Path) -> None:
    if "adapter=qlora" in more:
        pytest.importorskip("bitsandbytes", reason="needs the extra 'qlora'")
    for name in ("whole", "killed"):
        shutil.rmtree(place / name, ignore_errors=True)
    ended = train(place, *GIVEN, *more, "hydra.run.dir=whole")
    assert ended.codes == (0,), ended.said
    assert read_summary(place / "whole")["start_difference"] < 1e-5, "policy and reference start as the same"
    killed = train(place, *GIVEN, *more, "hydra.run.dir=killed", kill=Kill("step", 9, signal.SIGKILL))
    assert killed.codes == (-9,), killed.said
    resumed = train(place, "resume=killed")
    assert resumed.codes == (0,), resumed.said
    whole, actual = outcome(place / "whole"), outcome(place / "killed")
    assert [name for name in whole if actual[name] != whole[name]] == []
    assert whole["weights"]
    assert all("lora_" in name and ".default" in name for name in whole["weights"]), "no frozen weights"


def test_an_adapters_folder_is_no_model(place: Path) -> None:
    """Transformers would load it by itself, whatever its configuration says."""
    with refused(
        "adapter", key="model.path", value=place / "sft" / "policy", remedy=("model.path", "adapter.init_from=FOLDER")
    ):
        load_causal_lm(str(place / "sft" / "policy"), key="model.path")
