"""From a source's rows to batches: what is checked, counted, written and announced."""

from __future__ import annotations

import gzip
import inspect
import itertools
import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only
from transformers import AutoTokenizer

from caldpo.data.collate import Layout
from caldpo.data.datamodule import PairDataModule
from caldpo.data.raw_row import PairSource, RawRow, RewardSource
from tests.data.prepared import BASE, TEST, TRAIN, prepared, rejected, settings
from tests.data.small import RowsSource, ids, word_tokenizer
from tests.helpers.messages import names, refused
from tests.helpers.shared import shared


def plan_steps(module: PairDataModule, accumulation: int = 1, world_size: int = 1) -> None:
    module.plan_steps("padded", accumulation=accumulation, world_size=world_size, max_epochs=1, max_steps=None)


def test_the_yaml_has_the_keys_of_the_signature_each_with_a_comment() -> None:
    lines = BASE.read_text().splitlines()
    keys = [i for i, line in enumerate(lines) if line and not line.startswith(("#", " "))]
    assert all(lines[i - 1].startswith("# ") for i in keys)
    named = {lines[i].split(":")[0] for i in keys}
    assert named == {*inspect.signature(PairDataModule).parameters, "_target_"}


def test_two_splits_are_tokenised_counted_and_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, report = prepared(tmp_path)
    assert len(module.train_pairs) == 10
    assert module.origin(3) == "train:4"
    assert module.origin(2, "test") == "test:3"
    assert report["train"]["pairs"] == report["train"]["prompts"] == 10
    assert report["test"]["pairs"] == 3
    assert report["train"]["lengths"]["chosen"] == {"median": 3, "90%": 3, "99%": 3, "longest": 3}
    assert [(r["split"], r["rows"], r["kept"]) for r in report["read"]] == [("train", 10, 10), ("test", 3, 3)]
    assert report["prompts"] == "plain text"
    json.dumps(report)  # for summary.json
    assert rejected(tmp_path) == []
    output = capsys.readouterr().out
    names(output, "10 of 10 rows", "train:2", "[ yes][ c][ <eos>]")
    assert "train:3" not in output, "two pairs are shown"


def test_without_a_test_split_prompts_are_held_out(tmp_path: Path) -> None:
    rows = [(f"a {v} {w}", f" {v}", " no") for v in "bcdefghijk" for w in "bcde"]
    rows += [(p, " maybe", " yes") for p, _, _ in rows]  # each prompt twice
    module, report = prepared(tmp_path, source=RowsSource(train=rows), test=None, test_fraction=0.3)
    prompts = [{tuple(p.prompt_ids) for p in pairs} for pairs in (module.train_pairs, module.test_pairs)]
    assert not prompts[0] & prompts[1]
    assert len(prompts[0] | prompts[1]) == 40
    assert len(module.train_pairs) + len(module.test_pairs) == 80
    assert [r["rows"] for r in report["read"]] == [80]  # one file was read
    again, _ = prepared(tmp_path, source=RowsSource(train=rows), test=None, test_fraction=0.3, seed=9)
    assert list(again.test_pairs) == list(module.test_pairs)  # another training seed, the same held-out set
    other, _ = prepared(tmp_path, source=RowsSource(train=rows), test=None, test_fraction=0.3, split_seed=9)
    assert {p.origin for p in other.test_pairs} != {p.origin for p in module.test_pairs}


def test_subsets_are_drawn_with_the_split_seed_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def origins(**changes: Any) -> list[str]:
        module, report = prepared(tmp_path, max_train_pairs=4, max_test_pairs=2, **changes)
        assert (report["train"]["left_out"], report["test"]["left_out"]) == (6, 1)
        assert len(module.test_pairs) == 2
        return [p.origin for p in module.train_pairs]

    first = origins()
    names(capsys.readouterr().out, "6 pairs")
    assert sorted(first, key=lambda o: int(o.split(":")[1])) == first
    assert len(set(first)) == 4
    assert origins(seed=3) == first
    assert len({tuple(origins(split_seed=s)) for s in range(5)}) > 1
    assert prepared(tmp_path, max_train_pairs=10)[1]["train"]["left_out"] == 0


def test_limits_that_leave_no_room_are_refused() -> None:
    with refused("prompt", "response", key="data.max_length", value=1, remedy=("512", "1024")):
        PairDataModule(**settings(max_length=1))
    with refused("error, skip", key="on_invalid", value="warn"):
        PairDataModule(**settings(on_invalid="warn"))


@pytest.mark.parametrize(
    ("max_length", "given", "limit"),
    [(64, None, 32), (3, None, 1), (1024, None, 512), (64, 60, 60), (64, 512, 32), (64, 64, 32)],
)
def test_the_limit_of_prompts_follows_that_of_pairs(
    tmp_path: Path, max_length: int, given: int | None, limit: int
) -> None:
    """A recipe's limit of prompts that a smaller limit of pairs leaves no room for is half of that, and said."""
    module, report = prepared(tmp_path, max_length=max_length, max_prompt_length=given)
    assert (module.max_length, module.max_prompt_length) == (max_length, limit)
    noted = [note for note in report["notes"] if f"{given}" in note and f"{max_length}" in note and f"{limit}" in note]
    assert bool(noted) == (given is not None and given >= max_length)


def test_held_out_prompts_are_distinct_and_in_order(tmp_path: Path) -> None:
    rows = [
        ("b", " c", " d"),
        ("b", " e", " d"),
        ("f", " g", " h"),
        ("i <eos>", " <eos>", " <eos> <eos>"),
        ("k", " l", " m"),
    ]
    module, _ = prepared(tmp_path, source=RowsSource(train=TRAIN, test=rows))
    tokenizer = word_tokenizer()
    found = module.held_out_prompts(2)
    assert [(h.prompt, h.prompt_ids, h.reference) for h in found] == [
        ("b", ids(tokenizer, "b"), " c"),
        ("f", ids(tokenizer, "f"), " g"),
    ]
    # The pair that tokenisation dropped between them shifts nothing.
    assert [(h.prompt, h.prompt_ids) for h in module.held_out_prompts(9)][2:] == [("k", ids(tokenizer, "k"))]


def test_the_oracle_is_the_sources_reward(tmp_path: Path) -> None:
    source = RowsSource(train=TRAIN, test=TEST)
    assert PairDataModule(**settings(source=source)).oracle is None

    class Rewarded(RowsSource, RewardSource):
        def reward(self, prompt: str, response: str) -> float:
            return float(len(response) - len(prompt))

    assert PairDataModule(**settings(source=Rewarded())).oracle("ab", "abcde") == 3.0


def test_loaders_follow_the_trainers_ranks_and_accumulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, _ = prepared(tmp_path, micro_batch_size=2, eval_micro_batch_size=2, drop_last=True, seed=6)

    def attached(rank: int) -> PairDataModule:
        module.trainer = SimpleNamespace(  # type: ignore[assignment]
            distributed_sampler_kwargs={"num_replicas": 2, "rank": rank},
            strategy=SimpleNamespace(root_device=SimpleNamespace(type="cpu")),
        )
        return module

    plan_steps(module, accumulation=2, world_size=2)
    train = [list(attached(rank).train_dataloader()) for rank in (0, 1)]
    assert [[len(b.weight) for b in batches] for batches in train] == [[2, 2], [2, 2]]
    assert all(b.step_pairs == 8 for batches in train for b in batches)
    seen = [i for batches in train for b in batches for i in b.index.tolist()]
    assert len(set(seen)) == 8
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "data.drop_last" in line]
    names(line, "2 of 10 pairs")
    test = [list(attached(rank).val_dataloader()) for rank in (0, 1)]
    assert [b.index.tolist() for b in test[0]] == [[0]]
    assert [b.index.tolist() for b in test[1]] == [[1, 2]]
    assert test[0][0].step_pairs == 3
    module.trainer = None
    plan_steps(module)
    alone = [b.index.tolist() for b in module.train_dataloader()]
    assert [len(rows) for rows in alone] == [2] * 5
    assert sorted(i for rows in alone for i in rows) == list(range(10))


@pytest.mark.parametrize(("device", "waits"), [("cuda", False), ("cpu", True)])
def test_copies_to_a_gpu_do_not_wait(device: str, waits: bool) -> None:
    """Lightning's own way waits for whatever is no tensor."""
    asked: list[tuple[torch.device, bool]] = []
    batch = SimpleNamespace(to=lambda device, non_blocking=False: asked.append((device, non_blocking)) or "moved")
    moved = PairDataModule(**settings()).transfer_batch_to_device(batch, torch.device(device), 0)  # type: ignore[arg-type]
    assert (moved, asked) == ("moved", [(torch.device(device), not waits)])


@pytest.mark.parametrize(("workers", "prefetch"), [(0, None), (1, 3)])
def test_workers_keep_batches_ready(workers: int, prefetch: int | None, tmp_path: Path) -> None:
    module, _ = prepared(tmp_path, num_workers=workers, prefetch_factor=3, micro_batch_size=2)
    plan_steps(module)
    loader = module.train_dataloader()
    assert (loader._loader.num_workers, loader._loader.prefetch_factor) == (workers, prefetch)
    assert sorted(i for batch in loader for i in batch.index.tolist()) == list(range(10))


def test_workers_end_when_their_loaders_are_closed(tmp_path: Path) -> None:
    """SIGTERM, with which Python would end them, is the run's to heed and ignored by them."""
    before = multiprocessing.active_children()  # of other tests in this process
    module, _ = prepared(tmp_path, num_workers=2, micro_batch_size=2)
    plan_steps(module)
    half_read = iter(module.train_dataloader())
    for _ in range(2):  # a batch of each worker: both have started
        next(half_read)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    assert len(workers) == 2
    for worker in workers:
        worker.terminate()
        worker.join(0.2)
    assert all(worker.is_alive() for worker in workers)
    module.close_loaders()
    for worker in workers:
        worker.join(20)
    assert not any(worker.is_alive() for worker in workers)


def test_pairs_before_preparing_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="prepare_pairs"):
        plan_steps(PairDataModule(**settings()))


def test_other_ranks_are_silent_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    prepared(tmp_path)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


class FirstRows(PairSource):
    """The first rows of a gzipped file."""

    name = "first rows"

    def rows(self, split: str) -> Iterator[RawRow]:
        with gzip.open(split) as lines:
            for number, line in enumerate(itertools.islice(lines, 200), 1):
                yield RawRow(f"{Path(split).name}:{number}", json.loads(line))


def test_real_pairs_with_the_zephyr_tokenizer(tmp_path: Path) -> None:
    """Truncation counts as worked out here from the lengths of each text, without batches."""
    tokenizer = AutoTokenizer.from_pretrained(shared("tokenizers/zephyr"))
    train, test = (str(shared(f"data/{name}_prefs.jsonl.gz")) for name in ("train", "test"))
    module, report = prepared(
        tmp_path, tokenizer, source=FirstRows(), train=train, test=test, max_length=512, max_prompt_length=64
    )
    counts = dict.fromkeys(("prompt", "chosen", "rejected"), 0)
    for row in FirstRows().rows(train):
        header = f"<|user|>\n{row.value['prompt']}</s>\n<|assistant|>\n"
        texts = [header, *(header + row.value[s][-1]["content"] + "</s>" for s in ("chosen", "rejected"))]
        prompt, *whole = (len(tokenizer.tokenize(text)) for text in texts)
        sides = [length - prompt for length in whole]
        if prompt + max(sides) <= 512:
            continue
        counts["prompt"] += prompt > 64
        counts["chosen"] += sides[0] > 512 - min(prompt, 64)
        counts["rejected"] += sides[1] > 512 - min(prompt, 64)
    assert min(counts.values()) > 0
    assert report["train"]["truncated"] == counts
    assert report["train"]["pairs"] == 200
    eos = tokenizer.eos_token_id
    for pair in module.train_pairs:
        for side in (pair.chosen_ids, pair.rejected_ids):
            assert side.count(eos) == (side[-1] == eos)
            assert side[-1] == eos or len(pair.prompt_ids) + len(side) == 512


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_held_out_pairs_of_like_length_are_padded_together(tmp_path: Path, layout: Layout) -> None:
    """Short and long responses in turn: in their order every batch would be as long as its longest; packed has none."""
    test = [(f"z {w} ?", " yes" * (1 if i % 2 else 9), " no") for i, w in enumerate("bcdefgh")]
    data, _ = prepared(tmp_path, source=RowsSource(train=TRAIN, test=test), eval_micro_batch_size=2)
    data.layout = layout
    batches = list(data.val_dataloader())
    assert sorted(row for batch in batches for row in batch.index.tolist()) == list(range(7))
    assert all(batch.pairs <= 2 for batch in batches)
    if layout == "packed":
        assert [row for batch in batches for row in batch.index.tolist()] == list(range(7))
    else:
        longest = [batch.input_ids.shape[1] for batch in batches]
        assert longest == sorted(longest, reverse=True)
        assert longest[0] - longest[-1] == 8
