"""The second run reads its token ids, and nothing about it differs from one that tokenises."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from caldpo.data import token_cache
from caldpo.data.datamodule import PairDataModule
from caldpo.data.tokenize import TokenizedSplit, tokenize_pairs
from tests.data.prepared import Conversations, prepared, rejected, settings
from tests.data.small import TEMPLATE, RowsSource, chat, letter_tokenizer, pair, word_tokenizer, zephyr
from tests.helpers.forked import context
from tests.helpers.messages import names, refused
from tests.helpers.shared import shared

LIMITS: dict[str, Any] = {"max_length": 9, "max_prompt_length": 4, "on_degenerate": "drop"}
# kept, cut, equal once cut, no tokens in the prompt, equal tokens, EOS in the text
ROWS = [
    ("a b", " yes c", " no"),
    ("a b c d e f g h", " yes c", " no d"),
    ("a b c d e", " b c d e f g", " b c d e f h"),
    ("<eos>", " yes", " no"),
    ("d", " e ", " e  "),
    ("f", " yes <eos>", " no"),
]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pairs of each tokenisation."""
    calls: list[int] = []

    def tokenise(pairs: Any, *args: Any, **keys: Any) -> TokenizedSplit:
        calls.append(len(pairs))
        return tokenize_pairs(pairs, *args, **keys)

    monkeypatch.setattr(token_cache, "tokenize_pairs", tokenise)
    return calls


def split(cache: Path | None, rows: Any = ROWS, tokenizer: Any = None, **changes: Any) -> TokenizedSplit:
    pairs = [row if not isinstance(row, tuple) else pair(*row, origin=f"f:{i}") for i, row in enumerate(rows)]
    return token_cache.cached_tokens(
        pairs,
        tokenizer or word_tokenizer(),
        cache=cache,
        console=Console(),
        bar=Console(quiet=True),
        label="train",
        **{**LIMITS, **changes},
    )


def contents(found: TokenizedSplit) -> tuple[Any, ...]:
    return (
        list(found.pairs),
        list(found.sources),
        found.counts,
        found.rejections,
        found.cut_prompts,
        found.places,
        found.pairs.lengths().tolist(),
        found.pairs.has_scores,
    )


def test_cached_tokens_equal_fresh_ones(tmp_path: Path, counted: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    plain = split(None)
    assert (plain.rejections, plain.counts.identical, len(plain.cut_prompts)) != ([], 0, 0)
    first, second = split(tmp_path), split(tmp_path)
    assert contents(first) == contents(second) == contents(plain)
    assert counted == [6, 6]  # without a cache, and to fill it
    (file,) = tmp_path.glob("tokens-*.safetensors")
    names(capsys.readouterr().out, "train", file)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": [*ROWS[:-1], ("f", " yes <eos>", " maybe")]},
        {"rows": ROWS[:-1]},
        {"rows": ROWS[::-1]},
        {"max_length": 10},
        {"max_prompt_length": 3},
        {"on_degenerate": "keep"},
        {"tokenizer": word_tokenizer(bos=True)},
        {"tokenizer": letter_tokenizer()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_inputs_have_another_cache_file(changes: Any, tmp_path: Path, counted: list[int]) -> None:
    split(tmp_path)
    found = split(tmp_path, **changes)
    assert len(counted) == 2
    assert contents(found) == contents(split(None, **changes))


def test_a_template_and_the_code_are_part_of_it(
    tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Conversations(train=[("a", " yes", " no")])
    rows = [pair(row.value["prompt"], "yes", "no") for row in talk.rows("train")]
    for template in (TEMPLATE, TEMPLATE, TEMPLATE.replace(" z ", " y ")):
        split(tmp_path, rows, word_tokenizer(template=template))
    assert counted == [1, 1]
    monkeypatch.setattr(token_cache, "code_identity", lambda: "changed")
    split(tmp_path, rows)
    assert counted == [1, 1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": (*chat("a"), *chat("b"))},
        {"chosen_extra": {"reasoning_content": "Hm."}},
        {"rejected_extra": {"reasoning_content": "Hm."}},
        {"tools": [{"name": "f"}]},
        {"template_kwargs": {"bare": True}},
        {"demonstration": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_a_template_reads_of_a_pair_is_part_of_it(change: Any, tmp_path: Path) -> None:
    """The digest alone is compared: some of these pairs are refused, which is cached, too."""
    template = "{{ tools }}{{ bare }}" + TEMPLATE
    for row in (plain := pair(chat("a"), " yes", " no"), replace(plain, **change)):
        split(tmp_path, [row], word_tokenizer(template=template))
    assert len(list(tmp_path.glob("tokens-*.safetensors"))) == 2


def test_the_date_that_a_template_writes_and_how_special_text_is_split_are_part_of_it(
    tmp_path: Path, counted: list[int]
) -> None:
    rows, dated = [pair(chat("a"), " yes", " no")], word_tokenizer(template="{{ strftime_now('%d') }}" + TEMPLATE)
    for day in (1, 1, 2):
        split(tmp_path, rows, dated, now=datetime(2024, 2, day))
    assert len(counted) == 2
    plain = word_tokenizer()
    for day in (1, 2):  # this template writes none
        split(tmp_path, rows, plain, now=datetime(2024, 2, day))
    assert len(counted) == 3
    plain.split_special_tokens = True
    split(tmp_path, rows, plain)
    assert len(counted) == 4


def test_a_tokenizer_with_code_of_its_own_is_not_cached(tmp_path: Path, counted: list[int]) -> None:
    """The code may change, and no file of the tokenizer tells."""
    tokenizer = word_tokenizer()
    tokenizer.__class__ = type("Own", (type(tokenizer),), {"__module__": "transformers_modules.own"})
    for _ in range(2):
        split(tmp_path, tokenizer=tokenizer)
    assert (len(counted), list(tmp_path.iterdir())) == (2, [])


def test_special_tokens_are_part_of_it(tmp_path: Path, counted: list[int]) -> None:
    other = word_tokenizer()
    other.eos_token = "<bos>"
    split(tmp_path)
    assert contents(split(tmp_path, tokenizer=other)) == contents(split(None, tokenizer=other))
    assert len(counted) == 3


def test_scores_and_origins_are_those_of_this_run(tmp_path: Path, counted: list[int]) -> None:
    """They are no part of the ids: the same texts in another file, with scores, are read."""
    split(tmp_path)
    rows = RowsSource(train=[(*row, 2.0, 1.0) for row in ROWS[:2]], test=[("z", " yes", " no")])
    module, _ = prepared(tmp_path, source=rows, cache=str(tmp_path / "c"))
    again, _ = prepared(
        tmp_path, source=RowsSource(train=ROWS[:2], test=[("z", " yes", " no")]), cache=str(tmp_path / "c")
    )
    assert counted == [6, 2, 1]
    assert (module.train_pairs.has_scores, again.train_pairs.has_scores) == (True, False)
    assert [p.score_chosen for p in module.train_pairs] == [2.0, 2.0]
    assert [p.prompt_ids for p in module.train_pairs] == [p.prompt_ids for p in again.train_pairs]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "renamed"])
def test_a_damaged_file_is_replaced(
    damage: str, tmp_path: Path, counted: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = contents(split(tmp_path))
    (file,) = tmp_path.glob("*.safetensors")
    data = file.read_bytes()
    if damage == "renamed":  # a sound file with other content
        split(tmp_path / "other", ROWS[:3])
        data = next((tmp_path / "other").glob("*.safetensors")).read_bytes()
    else:
        data = {"cut": data[:-7], "flipped": data[:-30] + bytes([data[-30] ^ 1]) + data[-29:], "empty": b""}[damage]
    file.write_bytes(data)
    counted.clear()
    assert contents(split(tmp_path)) == expected
    assert counted == [6]
    names(capsys.readouterr().out, file, "damaged")
    assert contents(split(tmp_path)) == expected
    assert counted == [6]


def test_runs_report_the_same_with_and_without(
    tmp_path: Path, counted: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Report, rejected rows, preview, held-out prompts and origins of a whole preparation."""
    talk = Conversations(
        train=[*[(f"a {w}", f" yes {w}", " no") for w in "cdefghij"], ("k", " l", " l")], test=ROWS[:3]
    )
    found = []
    for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        folder = tmp_path / f"run{len(found)}"
        folder.mkdir()
        module, report = prepared(folder, source=talk, cache=cache, max_length=14, max_prompt_length=5)
        printed = [line for line in capsys.readouterr().out.splitlines() if ".safetensors" not in line]
        origins = [module.origin(i) for i in range(len(module.train_pairs))]
        found.append((json.dumps(report), rejected(folder), printed, module.held_out_prompts(5), origins))
    assert found[0] == found[1] == found[2]
    assert found[0][1] != []
    assert len(counted) == 4


def test_a_tokenizer_without_eos_is_refused_with_a_cache(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with refused("EOS", remedy="eos_token"):
        split(tmp_path, tokenizer=tokenizer)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with refused("cannot write", key="data.cache", value=tmp_path / "file" / "cache", remedy="folder"):
        split(tmp_path / "file" / "cache")


def test_a_full_disk_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> int:
        raise OSError("no space left")

    monkeypatch.setattr(token_cache, "atomic_file", full)
    assert contents(split(tmp_path)) == contents(split(None))
    names(capsys.readouterr().out, tmp_path, "no space left")


def test_processes_at_once_tokenise_once(tmp_path: Path) -> None:
    with context().Pool(2) as pool:
        seen = pool.map(tokenisations, [tmp_path / "cache"] * 2, chunksize=1)
    assert sorted(calls for calls, _ in seen) == [0, 1]
    assert seen[0][1] == seen[1][1]


def tokenisations(cache: Path) -> tuple[int, str]:
    """How often this process tokenised, and what it got."""
    calls: list[int] = []
    real = token_cache.tokenize_pairs

    def tokenise(pairs: Any, *args: Any, **keys: Any) -> TokenizedSplit:
        calls.append(1)
        return real(pairs, *args, **keys)

    token_cache.tokenize_pairs = tokenise
    found = split(cache, ROWS * 200)
    return len(calls), repr(contents(found))


def test_real_texts(tmp_path: Path, counted: list[int]) -> None:
    source = shared("data/test_prefs.jsonl.gz")
    rows = []
    with gzip.open(source) as lines:
        for line in list(lines)[:60]:
            row = json.loads(line)
            prompt = tuple(row["chosen"][:-1])
            rows.append(pair(prompt, row["chosen"][-1]["content"], row["rejected"][-1]["content"]))
    limits = {"max_length": 256, "max_prompt_length": 100}
    found = [contents(split(cache, rows, zephyr(), **limits)) for cache in (tmp_path, tmp_path, None)]
    assert found[0] == found[1] == found[2]
    assert len(counted) == 2


def test_the_key_is_null_or_a_folder(tmp_path: Path) -> None:
    assert PairDataModule(**settings(cache=None)).cache is None
    assert PairDataModule(**settings(cache="~/x")).cache == Path.home() / "x"
