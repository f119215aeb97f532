"""Hub data sets, read from folders with the hub's layout and columns; and what a failure tells a person."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from omegaconf import OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.data.load import load_pairs
from caldpo.data.pair_stream import ShuffledRows
from caldpo.data.raw_row import PairSource
from caldpo.data.sources.hub_dataset import HubDataset
from tests.helpers.messages import names, refused


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def parquet(path: Path, rows: list[dict], schema: pyarrow.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)


def turns(response: str, question: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": response}]


@pytest.fixture
def ultrafeedback(tmp_path) -> Path:
    folder = tmp_path / "ultrafeedback_binarized"

    def row(i: int, tie: bool = False) -> dict:
        return {
            "prompt": f"Q{i}",
            "prompt_id": f"{i:064d}",
            "chosen": turns(f"good {i}", f"Q{i}"),
            "rejected": turns(f"bad {i}", f"Q{i}"),
            "messages": turns(f"good {i}", f"Q{i}"),
            "score_chosen": 8.5,
            "score_rejected": 8.5 if tie else 3.0,
        }

    parquet(folder / "data/train_prefs-00000-of-00002.parquet", [row(i) for i in range(3)])
    parquet(folder / "data/train_prefs-00001-of-00002.parquet", [row(3, tie=True), row(4)])
    parquet(folder / "data/test_prefs-00000-of-00001.parquet", [row(9)])
    return folder


def load(name: str, folder: Path, split: str, **changes):
    """A split with the source and the policies of ``conf/data/<name>.yaml``, its path replaced."""
    conf = OmegaConf.merge(
        OmegaConf.load(conf_dir() / "data/base.yaml"), OmegaConf.load(conf_dir() / f"data/{name}.yaml")
    )
    keys = {k: v for k, v in conf.source.items() if k != "_target_"} | {"path": str(folder)} | changes
    policies = {k: conf[k] for k in ("on_degenerate", "on_reversed_scores")}
    return load_pairs(HubDataset(**keys), conf[split], **policies)


def test_ultrafeedback(ultrafeedback):
    """Shards in order; the tie stays, as in the published data; both splits by their names."""
    pairs, report = load("ultrafeedback", ultrafeedback, "train")
    assert [p.chosen for p in pairs] == [f"good {i}" for i in range(5)]
    assert [p.origin for p in pairs] == [f"train_prefs[{i}]" for i in range(5)]
    assert pairs[3].score_chosen == pairs[3].score_rejected == 8.5
    [(reason, count)] = report.degenerate_kept.items()
    assert count == 1
    names(reason, "equal scores")
    assert pairs[0].prompt == ({"role": "user", "content": "Q0"},)
    pairs, _ = load("ultrafeedback", ultrafeedback, "test")
    assert [p.chosen for p in pairs] == ["good 9"]


def test_slices_of_a_split(ultrafeedback):
    source = HubDataset(str(ultrafeedback))
    assert isinstance(source, PairSource)
    assert [row.value["prompt"] for row in source.rows("train_prefs[1:3]")] == ["Q1", "Q2"]
    assert source.name == "ultrafeedback_binarized"


def test_hh(tmp_path):
    """Transcripts in jsonl.gz, a folder a subset: all together, or one by data_dir; bad rows are skipped."""
    for i, subset in enumerate(("harmless-base", "helpful-base")):
        prompt = f"\n\nHuman: {subset}\n\nAssistant:"
        rows = [
            {"chosen": f"{prompt} yes", "rejected": f"{prompt} no"},
            {"chosen": prompt, "rejected": f"{prompt} no"},
        ]
        for split in ("train", "test"):
            file = tmp_path / "hh" / subset / f"{split}.jsonl.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows[: 2 - i]).encode()))
    pairs, report = load("hh", tmp_path / "hh", "train")
    assert [p.prompt[9:21] for p in pairs] == ["harmless-bas", "helpful-base"]
    assert {p.chosen for p in pairs} == {" yes"}
    [(reason, count)] = report.counts().items()
    assert count == 1
    names(reason, "chosen response", "no text")
    pairs, _ = load("hh", tmp_path / "hh", "test", data_dir="helpful-base")
    assert [p.prompt for p in pairs] == ["\n\nHuman: helpful-base\n\nAssistant:"]


def test_tldr(tmp_path):
    """The parquet conversion's layout; CNN/DailyMail articles are left out of the validation split."""

    def row(**info: str) -> dict:
        everything = dict.fromkeys(("id", "post", "title", "subreddit", "site", "article")) | info
        summaries = [
            {"text": " first", "policy": "sup4", "note": None},
            {"text": " second", "policy": "ref", "note": ""},
        ]
        return {
            "info": everything,
            "summaries": summaries,
            "choice": 1,
            "worker": "w",
            "batch": "b",
            "split": "train",
            "extra": {"confidence": None},
        }

    text = pyarrow.string()
    schema = pyarrow.schema(
        {
            "info": pyarrow.struct(dict.fromkeys(("id", "post", "title", "subreddit", "site", "article"), text)),
            "summaries": pyarrow.list_(pyarrow.struct(dict.fromkeys(("text", "policy", "note"), text))),
            "choice": pyarrow.int32(),
            **dict.fromkeys(("worker", "batch", "split"), text),
            "extra": pyarrow.struct({"confidence": pyarrow.int32()}),
        }
    )
    reddit, cnn = row(post="Long.", title="T", subreddit="r"), row(article="News.", title="T", site="cnn")
    folder = tmp_path / "summarize_from_feedback"
    parquet(folder / "comparisons/train/0000.parquet", [reddit], schema)
    parquet(folder / "comparisons/validation/0000.parquet", [cnn, reddit], schema)
    parquet(folder / "axis/test/0000.parquet", [{"info": {"id": "x"}, "summary": {"text": "x"}}])
    pairs, _ = load("tldr", folder, "train")
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [
        ("SUBREDDIT: r/r\nTITLE: T\nPOST: Long.\nTL;DR:", " second", " first")
    ]
    pairs, report = load("tldr", folder, "test")
    assert (len(pairs), [r.kind for r in report.rejections]) == (1, ["filtered"])
    assert pairs[0].origin == "validation[1]"


def test_nulls_of_a_table_are_absent(tmp_path):
    """Scores that only some rows have become nulls in a table."""
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1.0, "score_rejected": 0.0},
        {"prompt": "d", "chosen": "e", "rejected": "f"},
    ]
    parquet(tmp_path / "own/train.parquet", rows)
    pairs, _ = load_pairs(HubDataset(str(tmp_path / "own")), "train")
    assert [p.has_scores for p in pairs] == [True, False]


def test_unknown_split_names_the_splits(ultrafeedback):
    for split in ("train", "train_prefs[:"):
        with refused("split", ultrafeedback, key=split, remedy="splits"):
            HubDataset(str(ultrafeedback)).rows(split)
    with refused("train_prefs", "test_prefs", key="train"):
        HubDataset(str(ultrafeedback)).rows("train")


def test_unknown_subset_and_folder(ultrafeedback, tmp_path):
    with refused("default", ultrafeedback, key="data.source.config", value="other"):
        HubDataset(str(ultrafeedback), config="other").rows("train_prefs")
    nowhere = tmp_path / "nowhere"
    with refused("no such data set", key="data.source.path", value=nowhere, remedy="data.source.path=FOLDER"):
        HubDataset(str(nowhere)).rows("train")
    (tmp_path / "bare").mkdir()
    with refused("data files", key="data.source.path", value=tmp_path / "bare", remedy="data.source.path=FOLDER"):
        HubDataset(str(tmp_path / "bare")).rows("train")
    (tmp_path / "bare/train.jsonl").write_text("")
    with refused("files", "empty", key="data.source.path", value=tmp_path / "bare"):
        HubDataset(str(tmp_path / "bare")).rows("train")


def test_files_with_different_columns_are_explained(tmp_path):
    """The cause, where `datasets` itself only says that an error occurred."""
    parquet(tmp_path / "own/train-00000-of-00002.parquet", [{"prompt": "a"}])
    parquet(tmp_path / "own/train-00001-of-00002.parquet", [{"other": 1}])
    with refused("CastError", "column names", key="data.source.path", value=tmp_path / "own") as caught:
        HubDataset(str(tmp_path / "own")).rows("train")
    assert "An error occurred" not in str(caught.value)


def test_without_network_a_folder_is_suggested(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with refused(
        "hub",
        "OfflineModeIsEnabled",
        key="data.source.path",
        value="nobody/nothing-of-this-name",
        remedy="data.source.path=FOLDER",
    ):
        HubDataset("nobody/nothing-of-this-name").rows("train")


def test_the_split_held_out_beside_the_training_split(ultrafeedback, tmp_path):
    source = HubDataset(str(ultrafeedback))
    assert [source.held_out(s) for s in ("train_prefs", "train_prefs[:2]", "test_prefs")] == ["test_prefs"] * 2 + [None]
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    for split in ("train", "validation"):
        parquet(tmp_path / f"own/{split}.parquet", [row])
    assert HubDataset(str(tmp_path / "own")).held_out("train") == "validation"


def test_a_missing_shard_of_the_split_is_named(ultrafeedback):
    (ultrafeedback / "data/train_prefs-00000-of-00002.parquet").unlink()
    with refused("1 of 2 shards", "train_prefs-00000-of-00002.parquet", ultrafeedback / "data", key="train_prefs[:1]"):
        HubDataset(str(ultrafeedback)).rows("train_prefs[:1]")
    assert len(list(HubDataset(str(ultrafeedback)).rows("test_prefs"))) == 1


def test_subsets_are_named_where_one_has_to_be_chosen(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    for name in ("one", "two"):
        parquet(tmp_path / f"own/{name}/train.parquet", [{**row, "prompt": name}])
    configs = "".join(f"- config_name: {n}\n  data_files: {n}/train.parquet\n" for n in ("one", "two"))
    (tmp_path / "own/README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with refused("subsets", "'one', 'two'", key="data.source.config", remedy="data.source.config=NAME"):
        HubDataset(str(tmp_path / "own")).held_out("train")
    (found,) = HubDataset(str(tmp_path / "own"), config="two").rows("train")
    assert found.value["prompt"] == "two"


def test_a_folder_written_by_save_to_disk_is_read_or_named(tmp_path):
    data = datasets.Dataset.from_list([{"prompt": "q", "chosen": "a", "rejected": "b"}])
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "both")
    assert len(list(HubDataset(str(tmp_path / "both")).rows("train"))) == 1
    with refused("save_to_disk", key="data.source.path", remedy=f"data=local data.train={tmp_path}/both/train"):
        HubDataset(str(tmp_path / "both/train")).rows("train")


def test_the_commit_comes_from_the_hub_and_a_folder_has_none(ultrafeedback, monkeypatch):
    asked = []

    def info(self, path, *, revision, timeout):
        asked.append((path, revision))
        return SimpleNamespace(sha="a" * 40)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    assert HubDataset("owner/name", revision="v2").commit() == "a" * 40
    assert HubDataset(str(ultrafeedback)).commit() is None
    assert asked == [("owner/name", "v2")]
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert HubDataset("owner/name").commit() is None  # what is cached is read all the same


def test_no_key_holds_a_token():
    """Gated data is opened by HF_TOKEN or a login, so that no run folder can leak a token."""
    from inspect import signature

    assert set(signature(HubDataset.__init__).parameters) == {
        "self",
        "path",
        "config",
        "revision",
        "data_dir",
    }


def test_rows_are_streamed_as_they_are_read_at_once(ultrafeedback):
    source = HubDataset(str(ultrafeedback))
    assert list(source.stream("train_prefs")) == list(source.rows("train_prefs"))
    with refused("slice", key="train_prefs[:2]", remedy="whole"):
        next(source.stream("train_prefs[:2]"))
    with refused("no such split", key="train", remedy="splits"):
        next(source.stream("train"))
    (ultrafeedback / "data/train_prefs-00000-of-00002.parquet").unlink()
    with refused("1 of 2 shards", "train_prefs-00000-of-00002.parquet", key="train_prefs"):
        next(source.stream("train_prefs"))
    rows = ShuffledRows(source, "train_prefs", buffer=2, seed=0)
    with refused("1 of 2 shards", key="data.train", value="train_prefs"):
        next(rows.epoch(0))


def test_what_a_folder_is_read_from_is_listed_with_sizes(ultrafeedback):
    (ultrafeedback / ".cache").mkdir()
    (ultrafeedback / ".cache/lock").write_text("x")
    names = sorted(path.name for path in (ultrafeedback / "data").iterdir())
    listed = HubDataset(str(ultrafeedback)).file_sizes("train_prefs")
    assert listed == [(f"data/{name}", (ultrafeedback / "data" / name).stat().st_size) for name in names]
    assert HubDataset(str(ultrafeedback), data_dir="data").file_sizes("train_prefs")[0][0] == names[0]
    assert HubDataset("owner/name").file_sizes("train") == [], "its commit is recorded"
