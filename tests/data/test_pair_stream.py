"""Streamed pairs: an order by seed and epoch, the same for every reader; what a stream cannot have is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caldpo.data import pair_stream
from caldpo.data.batching import StepPlan
from caldpo.data.data_loading import PairLoader
from caldpo.data.datamodule import PairDataModule
from caldpo.data.pair_stream import SAMPLE, ShuffledRows
from caldpo.data.sources.local_files import LocalFiles
from caldpo.errors import CaldpoError
from caldpo.types import PairBatch
from tests.data.prepared import TEST, prepared, rejected, settings
from tests.data.small import RowsSource
from tests.helpers.messages import names, refused

COUNT = 300
LETTERS = "abcdefghijklmnopqrstuvwxy"
ROWS = [(f"a {LETTERS[i // 25 % 25]} {LETTERS[i % 25]}", f" yes {LETTERS[i % 25]}", " no") for i in range(COUNT)]


def stream(tmp_path: Path, rows: Any = ROWS, **changes: Any) -> PairDataModule:
    source = RowsSource(train=rows, test=TEST)
    module, _ = prepared(tmp_path, **{"source": source, "streaming": True, "shuffle_buffer": 40, "seed": 3} | changes)
    return module


def origins(module: PairDataModule, count: int, start: int = 0) -> list[str]:
    assert module.stream is not None
    return [module.stream[i].origin for i in range(start, start + count)]


def test_each_epoch_has_every_row_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    module = stream(tmp_path)
    epochs = [origins(module, COUNT, COUNT * epoch) for epoch in range(3)]
    everything = [f"train:{i}" for i in range(1, COUNT + 1)]
    assert [sorted(order) for order in epochs] == [sorted(everything)] * 3
    assert len({tuple(order) for order in [everything, *epochs]}) == 4
    assert [len(origins(stream(tmp_path, seed=seed), 50)) for seed in (3, 4)] == [50, 50]
    assert origins(stream(tmp_path), COUNT) == epochs[0]
    assert origins(stream(tmp_path, seed=4), COUNT) != epochs[0]
    assert origins(module, 5, 2 * COUNT + 7) == epochs[2][7:12], "asked for again"
    assert origins(module, COUNT) == epochs[0], "from the beginning again"


def test_a_buffer_of_one_row_keeps_the_order_and_a_large_one_is_a_permutation(tmp_path: Path) -> None:
    assert origins(stream(tmp_path, shuffle_buffer=1), 9) == [f"train:{i}" for i in range(1, 10)]
    whole = origins(stream(tmp_path, shuffle_buffer=10**6), COUNT)
    assert len(set(whole)) == COUNT
    assert max(abs(place - int(origin.split(":")[1])) for place, origin in enumerate(whole)) > COUNT // 2


def test_tokens_and_scores_are_those_of_the_same_rows_read_at_once(tmp_path: Path) -> None:
    rows = [(*row, 2.0 + i, 1.0) for i, row in enumerate(ROWS)]
    whole, _ = prepared(tmp_path, source=RowsSource(train=rows, test=TEST), max_length=6, max_prompt_length=3)
    streamed = stream(tmp_path, rows, max_length=6, max_prompt_length=3)
    expected = {pair.origin: pair for pair in whole.train_pairs}
    assert streamed.stream is not None
    for position in range(COUNT):
        pair = streamed.stream[position]
        same = expected[pair.origin]
        assert pair.index == position
        assert (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) == (
            same.prompt_ids,
            same.chosen_ids,
            same.rejected_ids,
        )
        assert (pair.score_chosen, pair.score_rejected) == (same.score_chosen, same.score_rejected)
        assert streamed.origin(position) == pair.origin
    assert len(streamed.train_pairs) == SAMPLE, "what is checked and reported before"


def loader(module: PairDataModule, *, world: int = 1, rank: int = 0, accumulation: int = 4) -> PairLoader:
    plan = module.plan_steps("padded", accumulation=accumulation, world_size=world, max_epochs=1, max_steps=10)
    assert (plan.steps, plan.pairs_seen) == (10, 10 * plan.step_size)
    return module._loader("train", plan.sampler(rank))


def test_an_automatic_budget_bounds_the_pairs_of_a_micro_batch(tmp_path: Path) -> None:
    """By the most tokens that any pair can have, since those of later pairs are not known; steps stay as they are."""
    module = stream(tmp_path, max_tokens_per_micro_batch="auto", micro_batch_size=16, max_length=8, max_prompt_length=4)

    def plan(budget: int, lengths: Any = None) -> StepPlan:
        module.token_budget = None
        extent = {"accumulation": 2, "world_size": 2, "max_epochs": 1, "max_steps": 10}
        return module.plan_steps("packed", **extent, lengths=lengths, choose_budget=lambda plan: budget)

    for budget, accumulation in ((1_000, 2), (16 * 8 * 2, 2), (5 * 8 * 2, 7), (8, 32)):
        cut = plan(budget)
        assert (cut.step_size, cut.accumulation) == (64, accumulation)
        assert max(len(batch.rows) for batch, _ in zip(cut.sampler(), range(99), strict=False)) == -(
            -32 // accumulation
        )
        estimated = plan(budget, module.train_pairs.lengths())
        assert (estimated.step_size, estimated.accumulation) == (cut.step_size, cut.accumulation)


def batches(loader: PairLoader, count: int) -> list[PairBatch]:
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


def pairs_of(some: list[PairBatch]) -> list[int]:
    return [i for batch in some for i in batch.index.tolist()]


def test_ranks_share_the_steps_of_one_device(tmp_path: Path) -> None:
    one = batches(loader(stream(tmp_path, micro_batch_size=3)), 12)
    steps = [sorted(pairs_of(one[i : i + 4])) for i in range(0, 12, 4)]
    assert steps == [list(range(start, start + 12)) for start in (0, 12, 24)]
    ranks = [
        batches(loader(stream(tmp_path, micro_batch_size=3), world=2, rank=rank, accumulation=2), 6) for rank in (0, 1)
    ]
    assert [sorted(pairs_of(ranks[0][i : i + 2] + ranks[1][i : i + 2])) for i in (0, 2, 4)] == steps
    texts = {i: row.tolist() for batch in one for i, row in zip(batch.index.tolist(), batch.input_ids, strict=False)}
    for batch in (batch for own in ranks for batch in own):
        assert {batch.step_pairs, batch.split} == {12, "train"}
        for i, row in zip(batch.index.tolist(), batch.input_ids.tolist(), strict=False):
            assert row == texts[i]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_loader_goes_on_where_the_other_was(tmp_path: Path, workers: int) -> None:
    """Past the end of an epoch, with rows that are left out in between."""
    rows = [row if i % 7 else ("", "x", "y") for i, row in enumerate(ROWS[:60])]
    keys = {"micro_batch_size": 2, "num_workers": workers, "on_invalid": "skip"}
    whole = batches(loader(stream(tmp_path, rows, **keys)), 40)
    for consumed in (0, 1, 5, 33):
        first = loader(stream(tmp_path, rows, **keys))
        batches_seen = []
        for batch in first:
            if len(batches_seen) == consumed:
                break
            batches_seen.append(batch)
            state = first.state_dict()
        if not consumed:
            continue
        second = loader(stream(tmp_path, rows, **keys))
        second.load_state_dict(state)
        rest = batches(second, 40 - consumed)
        assert [b.input_ids.tolist() for b in batches_seen + rest] == [b.input_ids.tolist() for b in whole]
        assert pairs_of(batches_seen + rest) == pairs_of(whole)
        first.close()
        second.close()


def test_rows_in_memory_are_those_of_the_buffer(tmp_path: Path) -> None:
    """Counted: of rows that are read and not handed on yet."""
    ahead = [0]

    class Counting(RowsSource):
        def rows(self, split: str) -> Any:
            for row in super().rows(split):
                ahead[0] += split == "train"
                yield row

    module = stream(tmp_path, ROWS * 4, source=Counting(train=ROWS * 4, test=TEST), on_degenerate="keep")
    ahead[0], most = 0, 0
    for position in range(3 * COUNT):
        assert module.stream is not None
        module.stream[position]
        most = max(most, ahead[0] - position)
    assert most <= 40 + pair_stream._ROWS + 1


def test_bad_rows_stop_the_run_or_are_listed(tmp_path: Path) -> None:
    rows = [*ROWS, ("q", "", " no"), *ROWS[:3], ("q", " no", " no")]
    module = stream(tmp_path, rows, shuffle_buffer=1)
    with refused("train:301", "chosen response has no text", key="data.on_invalid", value="error", remedy="skip"):
        origins(module, COUNT + 1)
    module = stream(tmp_path, rows, shuffle_buffer=1, on_invalid="skip")
    assert origins(module, COUNT + 4) == [f"train:{i}" for i in (*range(1, 301), 302, 303, 304, 1)]
    assert module.stream is not None
    listed = [("train:301", "row"), ("train:305", "degenerate")]
    assert [(row["origin"], row["kind"]) for row in rejected(tmp_path)] == listed
    origins(module, 9, 2 * COUNT)
    origins(module, COUNT)
    assert [(row["origin"], row["kind"]) for row in rejected(tmp_path)] == listed, "once, however often it is read"
    assert list(module.rejected_rows().values()) == [1, 1]


def test_each_row_is_listed_once_those_at_the_beginning_too(tmp_path: Path) -> None:
    """And what is listed is what has no pair: a stream keeps rows that repeat an earlier one."""
    rows = [row if i % 5 else ("q", "", " no") for i, row in enumerate(ROWS)] + [ROWS[1], ROWS[2]]
    for buffer in (1, 40):
        module = stream(tmp_path, [*rows[:9], rows[1], *rows[9:]], on_invalid="skip", shuffle_buffer=buffer)
        assert len(module.train_pairs) == SAMPLE - len(rejected(tmp_path)), "before training"
        read = set(origins(module, 4 * COUNT))
        listed = [row["origin"] for row in rejected(tmp_path)]
        assert len(listed) == len(set(listed)) == COUNT // 5
        assert sorted([*read, *listed]) == sorted(f"train:{i}" for i in range(1, COUNT + 4))
        [(reason, count)] = module.rejected_rows().items()
        assert count == COUNT // 5
        names(reason, "chosen response has no text")


def test_prompts_of_the_test_split(tmp_path: Path) -> None:
    rows = [*ROWS, TEST[0], ROWS[0]]
    with refused("train:301", key="data.on_shared_prompts", value="error", remedy="drop_train"):
        origins(stream(tmp_path, rows, shuffle_buffer=1), COUNT + 1)
    dropped = origins(stream(tmp_path, rows, shuffle_buffer=1, on_shared_prompts="drop_train"), COUNT + 1)
    assert dropped[-1] == "train:302"
    kept = origins(stream(tmp_path, rows, shuffle_buffer=1, on_shared_prompts="keep"), COUNT + 1)
    assert kept[-1] == "train:301"


def test_later_rows_without_scores_are_bad_rows_where_the_loss_needs_them(tmp_path: Path) -> None:
    rows = [*[(*row, 2.0, 1.0) for row in ROWS], ROWS[0]]
    source = RowsSource(train=rows, test=[(*row, 2.0, 1.0) for row in TEST])
    keys = {"source": source, "shuffle_buffer": 1, "micro_batch_size": 1}
    with refused("train:301", "scores", key="data.on_invalid"):
        origins(stream(tmp_path, rows, **keys, needs_scores=True), COUNT + 1)
    module = stream(tmp_path, rows, **keys)
    assert origins(module, COUNT + 1)[-1] == "train:301"
    for needed, scores in ((False, None), (True, [2.0])):
        [batch] = batches(loader(stream(tmp_path, rows, **keys, needs_scores=needed)), 1)
        assert (batch.score_chosen if batch.score_chosen is None else batch.score_chosen.tolist()) == scores


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_whoever_reads_the_stream(tmp_path: Path, workers: int) -> None:
    module = stream(tmp_path, [*ROWS, ("q", "", " no")], shuffle_buffer=1, num_workers=workers, micro_batch_size=50)
    with refused("train:301", "chosen response has no text", key="data.on_invalid", value="error", remedy="skip") as at:
        batches(loader(module), 7)
    assert isinstance(at.value, CaldpoError)
    assert (at.value.key, at.value.value) == ("data.on_invalid", "error")
    module.close_loaders()


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_are_counted_whoever_reads_the_stream(tmp_path: Path, workers: int) -> None:
    rows = [*ROWS, ("q", "", " no"), *ROWS[:50]]
    module = stream(tmp_path, rows, shuffle_buffer=1, num_workers=workers, micro_batch_size=50, on_invalid="skip")
    batches(loader(module), 8)
    module.close_loaders()
    assert list(module.rejected_rows().values()) == [1]


def test_a_long_way_to_where_the_run_goes_on_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = pair_stream.REMEMBERED + COUNT
    expected = origins(stream(tmp_path), far + 1)[-1]
    assert "again" not in capsys.readouterr().out
    assert origins(stream(tmp_path), 1, far) == [expected]
    names(capsys.readouterr().out, f"up to pair {far:,}")


def test_a_stream_without_any_pair_ends(tmp_path: Path) -> None:
    module = stream(tmp_path)
    assert module.stream is not None
    module.stream._rows = ShuffledRows(RowsSource(train=[]), "train", buffer=4, seed=0)
    with refused("none of its rows", key="data.train"):
        module.stream[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_train_pairs", 5), ("max_tokens_per_micro_batch", 100), ("drop_last", True), ("num_workers", 2)],
)
def test_settings_that_need_all_pairs_are_refused(key: str, value: Any) -> None:
    with refused("streaming", key=f"data.{key}", value=value, remedy=""):
        PairDataModule(**settings(streaming=True, **{key: value}))


def test_a_held_out_split_is_needed_and_weights_cannot_be_had(tmp_path: Path) -> None:
    with refused("streaming", key="data.test", remedy="data.test=NAME"):
        stream(tmp_path, test=None)
    with refused("weights", key="data.train", remedy="streaming=false"):
        stream(tmp_path, train={"train": 0.5, "other": 0.5})


def test_several_data_sets_are_one_stream(tmp_path: Path) -> None:
    source = RowsSource(train=ROWS[:150], more=ROWS[150:], test=TEST)
    module = stream(tmp_path, source=source, train=["train", "more"])
    names(json.dumps(sorted(origins(module, COUNT))), "train:150", "more:150")


def files(folder: Path, **counts: int) -> None:
    """A file of so many rows for each name."""
    start = 0
    for name, count in counts.items():
        lines = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in ROWS[start : start + count]]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        start += count


def test_each_file_is_read_once_and_notes_are_those_of_the_whole_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    files(tmp_path / "d", a=20, b=20, test=3)
    (tmp_path / "d/more.txt").write_text("")
    keys: dict[str, Any] = {"source": LocalFiles(), "test": "d/test.jsonl", "seed": 0}
    for twice in (["d/a.jsonl", "d/../d/a.jsonl"], ["d/[ab].jsonl", "d/b.jsonl"], ["d/b.jsonl", "d/*.jsonl"]):
        with refused("already", key="data.train", value=twice[1], remedy="only one"):
            stream(tmp_path, **keys | {"train": twice})
    named = ["d/[ab]*", "d/test.jsonl"]
    _, whole = prepared(tmp_path, **keys | {"train": named, "on_shared_prompts": "keep"})
    module, report = prepared(tmp_path, **keys | {"train": named, "on_shared_prompts": "keep", "streaming": True})
    expected = [note for read in whole["read"][:2] for note in read["notes"]]
    assert report["read"][0]["notes"] == expected
    names(expected[0], "2 files", "a.jsonl", "b.jsonl")
    assert module.stream is not None
    assert module.stream.file_sizes() == [
        (name, (tmp_path / "d" / name).stat().st_size) for name in ("a.jsonl", "b.jsonl", "test.jsonl")
    ]


@pytest.mark.parametrize("test", ["test.jsonl", "auto"])
def test_a_missing_file_is_named_by_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: str) -> None:
    monkeypatch.chdir(tmp_path)
    files(tmp_path, test=3)
    for train in ("none.jsonl", ["test.jsonl", "none.jsonl"]):
        with refused("no such file", key="data.train", value="none.jsonl", remedy=""):
            stream(tmp_path, source=LocalFiles(), train=train, test=test)
    for train in ("empty.jsonl", ["test.jsonl", "empty.jsonl"]):
        (tmp_path / "empty.jsonl").write_text("\n")
        module_rows = ShuffledRows(LocalFiles(), train, buffer=4, seed=0)
        with refused("no rows", key="data.train", value="empty.jsonl"):
            list(module_rows.epoch(0))
