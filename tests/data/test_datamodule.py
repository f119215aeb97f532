"""From a source's rows to batches: what is checked, counted, written and announced."""

from __future__ import annotations

import gzip
import inspect
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from pytorch_lightning.utilities import rank_zero_only
from transformers import AutoTokenizer

from caldpo.data.datamodule import PairDataModule
from caldpo.data.rows import RawRow
from caldpo.errors import CaldpoError
from tests.data.small import RowsSource, chat, ids, word_tokenizer
from tests.shared import shared

BASE = Path(__file__).parents[2] / "conf/data/base.yaml"
TRAIN = [(f"a {w} ?", f" yes {w}", f" no {w}") for w in "bcdefghijk"]
TEST = [(f"z {w} ?", f" yes {w}", f" no {w}") for w in "bcd"]


def settings(**changes: Any) -> dict[str, Any]:
    """What base.yaml says, without announcement, with ``changes``."""
    values = yaml.safe_load(BASE.read_text())
    del values["_target_"]
    values |= {"source": RowsSource(train=TRAIN, test=TEST), "train": "train", "test": "test", "seed": 0}
    unknown = changes.keys() - values.keys()
    assert not unknown
    return values | changes


def prepared(tmp_path: Path, tokenizer: Any = None, **changes: Any) -> tuple[PairDataModule, dict[str, Any]]:
    needs_scores = changes.pop("needs_scores", False)
    module = PairDataModule(**settings(**changes))
    report = module.prepare_pairs(tokenizer or word_tokenizer(), tmp_path, needs_scores, "cal_dpo")
    return module, report.as_dict()


def rejected(tmp_path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (tmp_path / "rejected_rows.jsonl").read_text().splitlines()]


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
    assert "10 of 10 rows kept" in output
    assert "pair 1 (train:2)" in output
    assert "pair 2" not in output
    assert "[ yes][ c][ <eos>]" in output


def test_counts_of_what_was_cut_and_dropped_reach_report_file_and_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ("a b c d e", " f g h", " i"),
        ("a b", " f g h i j k", " l"),
        ("b", " f g h i j k", " f g h i j l m"),  # the same first 5 tokens, all there is room for
    ]
    source = RowsSource(train=rows, test=TEST)
    module, report = prepared(tmp_path, source=source, max_length=6, max_prompt_length=2)
    assert report["train"]["truncated"] == {"prompt": 1, "chosen": 2, "rejected": 1}
    assert report["train"]["identical_after_truncation"] == 1
    others = ("boundary_merges", "eos_stripped", "eos_appended")
    assert [report["train"][name] for name in others] == [0, 0, 0]
    assert len(module.train_pairs) == report["train"]["pairs"] == 2
    assert report["read"][0]["kept"] == 3  # what was read is one account, what came of it another
    reason = "chosen and rejected are the same tokens once truncated"
    assert report["train"]["dropped"] == {reason: 1}
    assert rejected(tmp_path) == [{"split": "train", "origin": "train:3", "kind": "degenerate", "reason": reason}]
    assert "truncated: 1 prompts, 2 chosen, 1 rejected" in capsys.readouterr().out
    kept, _ = prepared(tmp_path, source=source, max_length=6, max_prompt_length=2, on_degenerate="keep")
    assert len(kept.train_pairs) == 3


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


def test_prompts_in_both_splits(tmp_path: Path) -> None:
    source = RowsSource(train=[*TRAIN, ("Z  b ?", " e", " f")], test=TEST)
    with pytest.raises(CaldpoError, match="1 prompts of the test split") as caught:
        prepared(tmp_path, source=source)
    assert caught.value.key == "data.on_shared_prompts"
    assert "train:11 and test:1" in str(caught.value)
    module, report = prepared(tmp_path, source=source, on_shared_prompts="drop_train")
    assert len(module.train_pairs) == report["train"]["pairs"] == 10
    assert report["train"]["dropped"] == {"the test split has the same prompt": 1}
    assert [(r["origin"], r["reason"]) for r in rejected(tmp_path)] == [
        ("train:11", "the test split has the same prompt")
    ]
    assert len(prepared(tmp_path, source=source, on_shared_prompts="keep")[0].train_pairs) == 11
    with pytest.raises(CaldpoError, match="all 3 training pairs"):
        prepared(tmp_path, source=RowsSource(train=TEST, test=TEST), on_shared_prompts="drop_train")


def test_a_loss_with_score_targets_needs_scores_in_every_row(tmp_path: Path) -> None:
    scored = [(*row, 2.0, 1.0) for row in TRAIN]
    with pytest.raises(CaldpoError, match=r"loss\.targets=scores: loss cal_dpo .*10 of 10 pairs of train") as caught:
        prepared(tmp_path, needs_scores=True)
    assert "loss.targets=half" in str(caught.value)
    with pytest.raises(CaldpoError, match="1 of 11 pairs of train have none, first train:11"):
        prepared(tmp_path, source=RowsSource(train=[*scored, ("c", " d", " e")], test=TEST), needs_scores=True)
    with pytest.raises(CaldpoError, match="3 of 3 pairs of test"):
        prepared(tmp_path, source=RowsSource(train=scored, test=TEST), needs_scores=True)
    source = RowsSource(train=scored, test=[(*row, 2.0, 1.0) for row in TEST])
    module, _ = prepared(tmp_path, source=source, needs_scores=True)
    batch = next(iter(module.train_dataloader()))
    assert batch.score_chosen.tolist() == [2.0] * 8


def test_subsets_are_drawn_with_the_split_seed_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def origins(**changes: Any) -> list[str]:
        module, report = prepared(tmp_path, max_train_pairs=4, max_test_pairs=2, **changes)
        assert (report["train"]["left_out"], report["test"]["left_out"]) == (6, 1)
        assert len(module.test_pairs) == 2
        return [p.origin for p in module.train_pairs]

    first = origins()
    assert "left out as a subset was asked for: 6 pairs" in capsys.readouterr().out
    assert sorted(first, key=lambda o: int(o.split(":")[1])) == first
    assert len(set(first)) == 4
    assert origins(seed=3) == first
    assert len({tuple(origins(split_seed=s)) for s in range(5)}) > 1
    assert prepared(tmp_path, max_train_pairs=10)[1]["train"]["left_out"] == 0


class Conversations(RowsSource):
    """The same rows as conversations."""

    def __init__(self, **splits: Any) -> None:
        super().__init__(**{k: [(list(chat(p)), *map(self.reply, r)) for p, *r in v] for k, v in splits.items()})

    @staticmethod
    def reply(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text.strip()}]


def test_conversations_need_a_chat_template(tmp_path: Path) -> None:
    source = Conversations(train=TRAIN, test=TEST)
    tokenizer = word_tokenizer(template=None)
    with pytest.raises(CaldpoError, match="no chat template"):
        prepared(tmp_path, tokenizer, source=source)
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.content + ' : ' }}{% endfor %}")
    module, report = prepared(tmp_path, tokenizer, source=source, chat_template=str(file))
    assert module.train_pairs[0].prompt_ids == ids(tokenizer, "a b ? :")
    assert tokenizer.chat_template == file.read_text()  # generation and export go on with it
    assert report["prompts"] == str(file)
    assert prepared(tmp_path, word_tokenizer(), source=source)[1]["prompts"] == "the tokenizer's chat template"


def test_conversations_the_template_refuses(tmp_path: Path) -> None:
    source = Conversations(train=TRAIN, test=TEST)
    tokenizer = word_tokenizer(
        template="{{ raise_exception('no c') if 'c' in messages[0].content }}"
        "{% for m in messages %}{{ m.content + ' ' + eos_token + ' ' }}{% endfor %}"
    )
    with pytest.raises(CaldpoError, match=r"1 pairs cannot be used .*\n    train:2: .*\(no c\)"):
        prepared(tmp_path, tokenizer, source=source)
    module, report = prepared(tmp_path, tokenizer, source=source, on_invalid="skip")
    assert len(module.train_pairs) == report["train"]["pairs"] == 9
    assert report["test"]["dropped"] == {"the chat template refuses the conversation": 1}
    assert [r["origin"] for r in rejected(tmp_path)] == ["train:2", "test:2"]
    refuses_all = word_tokenizer(template="{{ raise_exception('never') }}")
    with pytest.raises(CaldpoError, match="no pair is left: 10 pairs cannot be used"):
        prepared(tmp_path, refuses_all, source=source, on_invalid="skip")


def test_limits_that_leave_no_room_are_refused() -> None:
    with pytest.raises(CaldpoError, match=r"data\.max_prompt_length=512: must be below data\.max_length=512"):
        PairDataModule(**settings(max_length=512))
    with pytest.raises(CaldpoError, match="on_invalid"):
        PairDataModule(**settings(on_invalid="warn"))


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
    source.reward = lambda prompt, response: float(len(response) - len(prompt))  # type: ignore[attr-defined]
    assert PairDataModule(**settings(source=source)).oracle("ab", "abcde") == 3.0


def test_loaders_follow_the_trainers_ranks_and_accumulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, _ = prepared(tmp_path, pairs_per_batch=2, eval_pairs_per_batch=2, drop_last=True, seed=6)

    def attached(rank: int) -> PairDataModule:
        module.trainer = SimpleNamespace(  # type: ignore[assignment]
            accumulate_grad_batches=2,
            distributed_sampler_kwargs={"num_replicas": 2, "rank": rank},
            strategy=SimpleNamespace(root_device=SimpleNamespace(type="cpu")),
        )
        return module

    train = [list(attached(rank).train_dataloader()) for rank in (0, 1)]
    assert [[len(b.weight) for b in batches] for batches in train] == [[2, 2], [2, 2]]
    assert all(b.step_pairs == 8 for batches in train for b in batches)
    seen = [i for batches in train for b in batches for i in b.index.tolist()]
    assert len(set(seen)) == 8
    assert capsys.readouterr().out.count("each epoch leaves out 2 of 10 pairs") == 1
    test = [list(attached(rank).val_dataloader()) for rank in (0, 1)]
    assert [b.index.tolist() for b in test[0]] == [[0]]
    assert [b.index.tolist() for b in test[1]] == [[1, 2]]
    assert test[0][0].step_pairs == 3
    module.trainer = None
    alone = [b.index.tolist() for b in module.train_dataloader()]
    assert [len(rows) for rows in alone] == [2] * 5
    assert sorted(i for rows in alone for i in rows) == list(range(10))


def test_asking_before_preparing_is_a_mistake() -> None:
    with pytest.raises(RuntimeError, match="prepare_pairs"):
        PairDataModule(**settings()).train_dataloader()


def test_other_ranks_are_silent_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    prepared(tmp_path)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


class FirstRows:
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
