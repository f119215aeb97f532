"""A run that is killed anywhere and resumed is the run that was never killed, to the last bit.

Each of the 16 ways to train is killed at moments drawn at random; ``CALDPO_KILLS=100`` draws so many for each.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from caldpo.checkpointing.manifest import checkpoint_folders
from tests.evaluation.runs import write_data
from tests.helpers.messages import names
from tests.resume.child import Kill
from tests.resume.runs import BASE, outcome, train

pytestmark = pytest.mark.slow

KILL, TERM, USR1, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
# how often each event happens, at the least, in each of the runs below
EVENTS = {
    "step": 20,
    "update": 10,
    "evaluation": 6,
    "samples": 2,
    "row": 12,
    "tensors": 3,
    "manifest": 3,
    "rename": 3,
    "oracle": 1,
    "export": 1,
    "clock": 1500,
}
HEEDED = ("step", "update", "evaluation")  # events inside training, at which a signal is heeded
DRAWN = int(os.environ.get("CALDPO_KILLS", "2"))
FULL: tuple[str, ...] = ()
LORA = ("adapter=lora", "adapter.dropout=0.3")  # dropout: the generators are part of the run
# by steps (the last epoch is cut short) with evaluations in between, or by epochs with evaluations at their ends
BY_STEPS, BY_EPOCHS = ("trainer.max_steps=12",), ("trainer.max_epochs=2", "trainer.val_check_interval=null")

WAYS = [
    pytest.param(
        (*weights, f"optim={optim}", f"layout={layout}", *length),
        ranks,
        id=f"{'lora' if weights else 'full'}-{optim}-{layout}-{ranks}",
    )
    for number, (weights, optim, layout, ranks) in enumerate(
        (weights, optim, layout, ranks)
        for weights in (FULL, LORA)
        for optim in ("adamw", "rmsprop")
        for layout in ("packed", "padded")
        for ranks in (1, 2)
    )
    for length in [BY_EPOCHS if number % 3 == 2 else BY_STEPS]
]


def moments(name: str) -> list[Kill]:
    """Where to strike, drawn at random, the same for the same name."""
    rng = random.Random(name)
    found = []
    for event in rng.sample(list(EVENTS), k=min(DRAWN, len(EVENTS))) + rng.choices(list(EVENTS), k=max(0, DRAWN - 11)):
        number = rng.choice((KILL, TERM, USR1, INT)) if event in HEEDED else KILL
        found.append(Kill(event, rng.randint(1, EVENTS[event]), number))
    return found


def arguments(more: tuple[str, ...], ranks: int) -> list[str]:
    """The same pairs in each optimiser step, over however many ranks."""
    several = ("trainer.devices=2", "trainer.strategy=ddp", "data.micro_batch_size=2") if ranks == 2 else ()
    return [*BASE, *more, *several]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("more", "ranks"), WAYS)
def test_a_killed_run_resumes_bit_for_bit(
    more: tuple[str, ...], ranks: int, place: Path, request: pytest.FixtureRequest
) -> None:
    if "adapter=lora" in more:
        pytest.importorskip("peft")
    given = arguments(more, ranks)
    ended = train(place, *given, "hydra.run.dir=whole", ranks=ranks)
    assert set(ended.codes) == {0}, ended.said
    whole = outcome(place / "whole")
    for kill in moments(request.node.callspec.id):
        killed = train(place, *given, "hydra.run.dir=killed", kill=kill, ranks=ranks)
        if kill.event != "clock":
            # on a signal to one rank all stop, and say by which signal; before training there is nothing to save
            assert killed.codes[0] == (-KILL if kill.number == KILL else 128 + kill.number), (kill, killed.said)
            assert kill.number == KILL or kill.event == "evaluation" or set(killed.codes) == {128 + kill.number}
        # a clock may strike before there is a run, or when all is over; the same command then does what is left to do
        again = [*given, "hydra.run.dir=killed", "resume=auto"] if kill.event == "clock" else ["resume=killed"]
        resumed = train(place, *again, ranks=ranks)
        assert set(resumed.codes) == {0}, (kill, resumed.said)
        found = outcome(place / "killed")
        assert [name for name in whole if found[name] != whole[name]] == [], kill
        shutil.rmtree(place / "killed")


def test_a_run_may_be_killed_again_and_again(place: Path) -> None:
    """Also in the evaluation that a resumed run makes up for, and before it has saved anything of its own."""
    given = arguments(("trainer.max_steps=12", "data.num_workers=1"), 1)
    assert train(place, *given, "hydra.run.dir=whole2").codes == (0,)
    strikes = [Kill("step", 2, KILL), Kill("step", 14, TERM), Kill("evaluation", 1, KILL), Kill("evaluation", 2, TERM)]
    strikes += [Kill("update", 1, INT), Kill("step", 3, KILL), Kill("rename", 1, KILL), Kill("export", 1, KILL)]
    first, *others = strikes
    assert train(place, *given, "hydra.run.dir=again", kill=first).codes == (-KILL,)
    for kill in others:
        assert train(place, "resume=again", kill=kill).codes != (0,), kill
    assert train(place, "resume=again").codes == (0,)
    whole, found = outcome(place / "whole2"), outcome(place / "again")
    assert [name for name in whole if found[name] != whole[name]] == []


def test_a_signal_to_one_rank_in_the_first_evaluation_stops_all(place: Path) -> None:
    """Before there is anything to save; none of them waits for one that has gone."""
    given = arguments(("trainer.max_steps=12",), 2)
    ended = train(place, *given, "hydra.run.dir=early", kill=Kill("evaluation", 1, TERM), ranks=2, patience=120)
    assert ended.codes == (143, 143), ended.said
    names(ended.said, "0 optimiser steps")
    assert "checkpoints/step-" not in ended.said
    assert not checkpoint_folders(place / "early")
    assert json.loads((place / "early" / "summary.json").read_text())["status"] == "interrupted"


def test_a_second_ctrl_c_quits_at_once(place: Path) -> None:
    """Without a save; the checkpoints that were there stay."""
    given = arguments(("trainer.max_steps=12",), 1)
    ended = train(place, *given, "hydra.run.dir=twice", kill=Kill("update twice", 5, INT))
    assert ended.codes == (130,)
    names(ended.said, "Ctrl-C")
    assert "checkpoints/step-" not in ended.said
    assert list(checkpoint_folders(place / "twice")) == [3]


def test_a_signal_to_the_whole_process_group_saves(place: Path) -> None:
    """As timeout, systemd and container engines send it: also to the workers that load data."""
    given = arguments(("trainer.max_steps=12", "data.num_workers=2"), 1)
    ended = train(place, *given, "hydra.run.dir=group", kill=Kill("step group", 10, TERM))
    assert ended.codes == (143,), ended.said
    assert list(checkpoint_folders(place / "group"))[-1] == 5  # the step whose second micro-batch it was
