"""What is said where compared runs are not alike in data, model or steps."""

from __future__ import annotations

import json

import pytest

from caldpo.compare import main
from caldpo.config.find_runs import find_runs
from caldpo.report.grouping import group_runs
from caldpo.report.read_runs import read_runs
from caldpo.report.unlike_runs import unlike
from tests.helpers.messages import names
from tests.report.runs import finals, held_out, write_run

ROWS = [held_out(0, 0.0, 0.0), held_out(10, -2.0, -5.0)]


def lines_of(folder):
    return unlike(group_runs(read_runs(find_runs(folder), folder)))


def with_options(folder, **options):
    choices = {"hydra": {"runtime": {"choices": {"model": "tiny", "data": "reviews", **options}}}}
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps(choices))


def test_nothing_where_only_loss_seed_and_learning_rate_differ(tmp_path):
    for loss, beta, lr in (("dpo", 0.1, 0.01), ("dpo", 0.2, 0.01), ("ipo", 0.1, 0.02)):
        for seed in (0, 1):
            config = {"optim": {"lr": lr}, "data": {"seed": seed, "num_workers": seed, "micro_batch_size": 4}}
            write_run(tmp_path / f"{loss}{beta}{seed}", loss, seed, rows=ROWS, loss_keys={"beta": beta}, config=config)
    assert lines_of(tmp_path) == []


@pytest.mark.parametrize(
    ("key", "what", "said"),
    [
        ("data.train", "data", ("a.jsonl", "b.jsonl")),
        ("model.hidden_size", "model", ("a.jsonl", "b.jsonl")),
        ("adapter.rank", "model", ("a.jsonl", "b.jsonl")),
        ("reference.path", "model", ("a.jsonl", "b.jsonl")),
        ("trainer.extra.limit_val_batches", "data", ("a.jsonl", "b.jsonl")),
    ],
)
def test_a_key_of_data_or_model_is_named_with_values_and_settings(tmp_path, key, what, said):
    section, name = key.split(".", 1)
    for loss, value in (("dpo", "a.jsonl"), ("ipo", "b.jsonl"), ("cpo", "a.jsonl")):
        write_run(tmp_path / loss, loss, rows=ROWS, config={section: {name: value}})
    (line,) = lines_of(tmp_path)
    assert line.startswith(what)
    names(line, key, *said, "dpo", "ipo", "cpo")
    assert line.index("cpo") < line.index("ipo"), "settings are listed by value"


def test_options_come_first_and_what_follows_from_them_is_counted(tmp_path):
    for loss, data in (("dpo", "reviews"), ("ipo", "arithmetic")):
        config = {"data": {f"{data}_{i}": i for i in range(6)}}
        counts = {"data": {"train": {"pairs": len(data)}, "test": {"pairs": 2}}}
        with_options(write_run(tmp_path / loss, loss, rows=ROWS, config=config, summary=counts), data=data)
    (line,) = lines_of(tmp_path)
    names(line, "reviews (dpo data=reviews)", "arithmetic (ipo data=arithmetic)")


def test_numbers_of_pairs_show_other_data_under_one_name(tmp_path):
    for loss, pairs in (("dpo", 100), ("ipo", 90)):
        summary = {"data": {"train": {"pairs": pairs}, "test": {"pairs": 20}}}
        write_run(tmp_path / loss, loss, rows=ROWS, summary=summary)
    (line,) = lines_of(tmp_path)
    names(line, "data", "train pairs", "100 (dpo)", "90 (ipo)")


def test_steps_and_early_stops(tmp_path):
    write_run(tmp_path / "a", "dpo", rows=ROWS, summary={"steps": 10})
    write_run(tmp_path / "b", "ipo", rows=ROWS, summary={"steps": 7, "stopped_early": True})
    write_run(tmp_path / "c", "cpo", rows=ROWS, status="failed", summary={"steps": 3})
    (line,) = lines_of(tmp_path)
    names(line, "optimiser steps", "10 (dpo)", "7, stopped early (ipo)")
    assert "cpo" not in line, "it has no figures"


def test_seeds_that_ended_at_different_steps(tmp_path):
    for loss, order in (("dpo", (200, 60)), ("ipo", (60, 200))):
        for seed, steps in enumerate(order):
            summary = {"steps": steps, "stopped_early": steps < 200}
            write_run(tmp_path / f"{loss}{seed}", loss, seed, rows=ROWS, summary=summary)
    (line,) = lines_of(tmp_path)
    names(line, "dpo (60, 200, stopped early)", "ipo (60, 200, stopped early)", "seeds")


def test_report_and_terminal_begin_with_it(tmp_path, capsys):
    for loss, value in (("dpo", "a"), ("ipo", "b")):
        write_run(tmp_path / loss, loss, rows=ROWS, metrics=finals(ROWS[-1]), config={"data": {"train": value}})
    main([str(tmp_path)])
    said = capsys.readouterr().out
    assert said.index("warning: data") < said.index("Final held-out figures")
    text = (tmp_path / "report.md").read_text()
    assert text.index("data differ by `data.train`".replace("`", "")) < text.index("## What was compared")
    page = (tmp_path / "report.html").read_text()
    assert page.index('id="summary"') < page.index("data differ by data.train") < page.index('class="lead"')
