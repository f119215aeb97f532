"""The page of runs under way: what is served follows their files, and nothing else is served."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from caldpo.compare import main
from caldpo.metrics_file import NAME, RowWriter, keep_rows
from caldpo.report.live import followed_curves
from caldpo.report.live.followed_curves import FollowedCurves
from caldpo.report.live.time_left import as_text, seconds_left, sweep_seconds_left
from caldpo.report.live.watched_runs import WatchedRuns
from caldpo.report.page.page_html import page_data
from caldpo.report.planned_runs import not_begun, planned_runs
from caldpo.report.read_curves import every_curve, read_curves
from tests.helpers.messages import names
from tests.report.live_runs import ask, end, evaluate, serving, state_of, training
from tests.report.pages import HOSTILE, Page, data_of, write_samples
from tests.report.runs import finals, held_out, write_run

ROWS = [held_out(0, 0.0, 0.0), held_out(20, -2.0, -4.0)]


def served(server: Any, path: str = "/update") -> str:
    status, _, body = ask(server, path)
    assert status == 200
    return body.decode()


def curves(text: str) -> dict[str, list[float]]:
    """The chosen log-ratios that a page draws, by setting."""
    data = data_of(text)
    panel = next((panel for panel in data["panels"] if panel["id"] == "log_ratios-chosen"), {"curves": []})
    return {data["groups"][curve["group"]]["label"]: curve["y"] for curve in panel["curves"]}


def finals_of(text: str) -> str:
    """The table of final figures."""
    return text.split('<table id="finals">')[1].split("</table>")[0]


# ---- what is served follows the files


def test_a_curve_grows_and_a_run_finishes(tmp_path):
    with serving(tmp_path) as server:
        with training(tmp_path / "a") as run:
            first = state_of(server)
            assert curves(served(server)) == {"dpo": [0.0, -1.0]}
            assert data_of(served(server))["groups"][0]["state"] == "running"
            row = first["runs"][0]
            assert (row["state"], row["share"]) == ("running", 0.25)
            names(row["steps"], "5", "20")
            evaluate(run, 10, -3.0)
            second = state_of(server)
            assert second["version"] != first["version"]
            assert second["runs"][0]["share"] == 0.5
            assert curves(served(server)) == {"dpo": [0.0, -1.0, -3.0]}
            assert "-3.00" not in finals_of(served(server))
        end(run, metrics=finals(held_out(10, -3.0, -6.0)))
        last = state_of(server)
        assert last["runs"] == []
        names(last["message"], "1 of 1 run finished")
        assert data_of(served(server))["groups"][0]["state"] == ""
        assert "-3.00" in finals_of(served(server))


def test_rows_of_training_alone_move_the_bar_and_not_the_page(tmp_path):
    with training(tmp_path / "a") as run, serving(tmp_path) as server:
        first = state_of(server)
        RowWriter(run / NAME).write({"loss": 0.5}, 7)  # brings a column: the file is written anew
        RowWriter(run / NAME).write({"loss": 0.4}, 8)
        second = state_of(server)
        assert second["version"] == first["version"]
        assert second["runs"][0]["share"] == 0.4


def test_a_second_run_appears_and_one_that_failed_is_marked(tmp_path):
    with training(tmp_path / "a") as run, serving(tmp_path) as server:
        before = state_of(server)
        with training(tmp_path / "b", "ipo", chosen=4.0) as second:
            assert state_of(server)["version"] != before["version"]
            assert curves(served(server)) == {"dpo": [0.0, -1.0], "ipo": [0.0, 4.0]}
        end(second, "failed", error=f"CaldpoError: {HOSTILE}")
        rows = state_of(server)["runs"]
        assert [(row["name"], row["state"]) for row in rows] == [("a", "running"), ("b", "failed")]
        names(rows[1]["error"], "alert(1)")
        assert {group["state"] for group in data_of(served(server))["groups"]} == {"running", "failed"}
        assert "img" not in Page(served(server)).tags
        evaluate(run, 10, -3.0)
        assert curves(served(server))["ipo"] == [0.0, 4.0], "as far as it came"


def test_a_run_whose_process_is_gone_has_died(tmp_path):
    with serving(tmp_path) as server:
        with training(tmp_path / "a"):
            assert state_of(server)["runs"][0]["state"] == "running"
        assert state_of(server)["runs"][0]["state"] == "died"


def test_a_setting_is_drawn_from_its_finished_seeds(tmp_path):
    write_run(tmp_path / "a", rows=ROWS, metrics=finals(ROWS[1]))
    with training(tmp_path / "b", seed=1), serving(tmp_path) as server:
        assert curves(served(server)) == {"dpo": [0.0, -2.0]}
        names(data_of(served(server))["groups"][0]["state"], "1 of 2 finished")


def test_samples_are_followed(tmp_path):
    run = write_run(tmp_path / "a", rows=ROWS, metrics=finals(ROWS[1]))
    with serving(tmp_path) as server:
        before = state_of(server)
        assert data_of(served(server))["samples"] is None
        (run / "evaluation").mkdir()
        write_samples(run, "dpo")
        assert state_of(server)["version"] != before["version"]
        assert len(data_of(served(server))["samples"]["prompts"]) == 3


def test_one_run(tmp_path):
    with training(tmp_path / "a") as run, serving(run) as server:
        assert [row["name"] for row in state_of(server)["runs"]] == ["a"]
        assert curves(served(server)) == {"dpo": [0.0, -1.0]}


def test_an_answer_that_is_known_is_not_sent_again(tmp_path):
    write_run(tmp_path / "a", rows=ROWS, metrics=finals(ROWS[1]))
    with serving(tmp_path) as server:
        for path in ("/state", "/update"):
            _, headers, body = ask(server, path)
            host = {"Host": "localhost"}
            assert ask(server, path, {**host, "If-None-Match": headers["ETag"]})[::2] == (304, b"")
            assert ask(server, path, {**host, "If-None-Match": '"other"'})[::2] == (200, body)


def test_the_page_runs_its_own_scripts_and_asks_its_server_alone(tmp_path):
    write_run(tmp_path / "a", rows=ROWS, metrics=finals(ROWS[1]))
    with serving(tmp_path) as server:
        whole, bare = served(server, "/"), served(server)
        assert "connect-src 'self'" in next(value for name, value in Page(whole).attributes if name == "content")
        assert Page(whole).tags.count("script") == 7, "data, plotly and five own"
        assert Page(bare).tags.count("script") == 1, "data alone"
        assert data_of(whole) == data_of(bare)


# ---- folders without runs


def test_a_sweep_that_has_not_begun_and_a_folder_that_vanishes(tmp_path):
    folder = tmp_path / "sweep"
    with serving(folder) as server:
        names(state_of(server)["message"], "no folder", str(folder))
        assert curves(served(server)) == {}
        folder.mkdir()
        names(state_of(server)["message"], "No run has begun", str(folder))
        write_run(folder / "a", rows=ROWS, metrics=finals(ROWS[1]))
        names(state_of(server)["message"], "1 of 1 run finished")
        assert curves(served(server)) == {"dpo": [0.0, -2.0]}
        shutil.rmtree(folder)
        names(state_of(server)["message"], str(folder), "gone", "1 of 1 run finished")
        assert curves(served(server)) == {"dpo": [0.0, -2.0]}, "as it was read last"


def test_a_run_that_is_removed_is_gone(tmp_path):
    for loss in ("dpo", "ipo"):
        write_run(tmp_path / loss, loss, rows=ROWS, metrics=finals(ROWS[1]))
    with serving(tmp_path) as server:
        assert set(curves(served(server))) == {"dpo", "ipo"}
        shutil.rmtree(tmp_path / "ipo")
        assert set(curves(served(server))) == {"dpo"}


def test_a_page_that_cannot_be_made_does_not_end_the_server(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "a", rows=ROWS, metrics=finals(ROWS[1]))
    with serving(tmp_path) as server:
        with monkeypatch.context() as patch:
            patch.setattr("caldpo.report.page.page_html.page_data", lambda *_: 1 / 0)
            assert "tried again" in served(server)
            names(capsys.readouterr().out, "ZeroDivisionError")
        write_run(tmp_path / "b", "ipo", rows=ROWS, metrics=finals(ROWS[1]))
        assert set(curves(served(server))) == {"dpo", "ipo"}
        assert page_data([], "range")["groups"] == []


# ---- only what changed is read


def test_finished_runs_are_read_once(tmp_path):
    for seed in range(20):
        write_run(tmp_path / f"r{seed}", seed=seed, rows=ROWS, metrics=finals(ROWS[1]))
    watched = WatchedRuns([tmp_path], tmp_path)
    assert watched.refresh()
    assert watched.reads == 20
    assert not watched.refresh()
    assert watched.reads == 20
    end(tmp_path / "r3", metrics=finals(held_out(20, -5.0, -9.0)))
    assert watched.refresh()
    assert watched.reads == 21
    assert [run.final["val/log_ratios/chosen"] for run in watched.runs].count(-5.0) == 1


def test_samples_are_read_once(tmp_path, monkeypatch):
    run = write_run(tmp_path / "a", rows=ROWS, metrics=finals(ROWS[1]))
    (run / "evaluation").mkdir()
    write_samples(run, "dpo")
    file, watched = run / "evaluation" / "oracle_samples.jsonl", WatchedRuns([tmp_path], tmp_path)
    first = watched.lines_of(file)
    assert len(list(first)) == 5
    assert watched.lines_of(file) is first
    with file.open("a") as opened:
        opened.write("7\n")
    assert list(watched.lines_of(file))[-1] == 7


def test_of_a_file_that_grew_the_new_rows_are_read(tmp_path, monkeypatch):
    file, followed, read = tmp_path / NAME, FollowedCurves(), []

    class Counted:
        def __init__(self, lines: Any) -> None:
            text = lines.read()
            read.append(text.count("\n"))
            self.lines = iter(line.split(",") for line in text.splitlines())

        def __iter__(self) -> Any:
            return self.lines

        def __next__(self) -> Any:
            return next(self.lines)

    monkeypatch.setattr(followed_curves.csv, "reader", Counted)
    writer = RowWriter(file)
    for step in range(3):
        writer.write({"val/a": 0.5 * step}, step)
    assert dict(followed(file, [], every_curve)["val/a"]) == {0: 0.0, 1: 0.5, 2: 1.0}
    writer.write({"val/a": 9.0}, 3)
    assert dict(followed(file, [], every_curve)["val/a"])[3] == 9.0
    followed(file, [], every_curve)
    assert read == [4, 1], "header and three rows, one row, nothing"


def test_a_followed_file_is_read_as_a_whole_one(tmp_path):
    file, followed = tmp_path / NAME, FollowedCurves()

    def same() -> None:
        notes: tuple[list[str], list[str]] = ([], [])
        mine, plain = followed(file, notes[0], every_curve), read_curves(file, notes[1], every_curve)
        assert {name: dict(curve) for name, curve in mine.items()} == {n: dict(c) for n, c in plain.items()}
        assert notes[0] == notes[1]

    same()  # there is none yet
    writer = RowWriter(file)
    for step in range(400):
        writer.write({"val/a": step / 3, "train/b": -step}, step)
        if step % 80 == 7:
            same()
    writer.write({"val/new": 1.5}, 400)  # a new column: every row is another
    same()
    with file.open("a") as opened:
        opened.write("x,1,2,3\nwrong line\n")
    same()
    keep_rows(file, 100)  # as a resumed run does
    same()
    RowWriter(file).write({"val/a": 7.0}, 500)
    same()
    before = dict(followed(file, [], every_curve)["val/a"])
    with file.open("a") as opened:
        opened.write("501,1")  # a row that is being written
    assert dict(followed(file, [], every_curve)["val/a"]) == before


# ---- time left


def timed(tmp_path: Path, run: Path, since: float, written: float) -> None:
    owner = json.loads((run / ".run.owner.json").read_text())
    owner["since"] = datetime.fromtimestamp(since, UTC).isoformat()
    (run / ".run.owner.json").write_text(json.dumps(owner))
    os.utime(run / NAME, (written, written))


def test_time_left_of_a_run_and_of_its_sweep(tmp_path):
    now = 1_000_000.0
    with training(tmp_path / "a") as run, training(tmp_path / "b", "ipo") as other:
        timed(tmp_path, run, now - 110, now - 10)  # 5 of 20 steps in 100 s: 300 s more, 10 of which have passed
        timed(tmp_path, other, now - 50, now)  # 150 s more
        watched = WatchedRuns([tmp_path], tmp_path)
        watched.refresh()
        runs = list(watched.watched.values())
        assert [seconds_left(entry, now) for entry in runs] == pytest.approx([290, 150])
        assert sweep_seconds_left(runs, 0, now) == pytest.approx(290), "the slower one"
        # four more, each as long as the two are on average (400 and 200 s), two at a time
        assert sweep_seconds_left(runs, 4, now) == pytest.approx((290 + 150 + 4 * 300) / 2)
        write_run(tmp_path / "c", "cpo", rows=ROWS, metrics=finals(ROWS[1]), summary={"wall_seconds": 60.0})
        watched.refresh()
        assert sweep_seconds_left(list(watched.watched.values()), 4, now) == pytest.approx((290 + 150 + 4 * 60) / 2)


def test_of_a_resumed_run_the_speed_is_taken_since_it_is_watched(tmp_path):
    now = 1_000_000.0
    with training(tmp_path / "a") as run:
        end(run, "running", stretches=2)
        timed(tmp_path, run, now - 20, now - 10)
        watched = WatchedRuns([tmp_path], tmp_path)
        watched.refresh()
        assert seconds_left(watched.watched[run], now) is None
        evaluate(run, 10, -3.0)
        os.utime(run / NAME, (now, now))
        watched.refresh()
        assert seconds_left(watched.watched[run], now) == pytest.approx(20), "5 steps in 10 s, 10 to come"


def test_nobody_can_tell_of_runs_that_do_not_train(tmp_path):
    write_run(tmp_path / "a", rows=ROWS, status="failed")
    watched = WatchedRuns([tmp_path], tmp_path)
    watched.refresh()
    assert sweep_seconds_left(list(watched.watched.values()), 3, time.time()) is None
    assert [as_text(value) for value in (None, 20.0, 100.0, 7000.0, 180000.0)] == [
        "", "less than 1 min", "about 2 min", "about 2 h", "about 2 d",
    ]  # fmt: skip


def test_runs_that_have_not_begun_are_counted(tmp_path):
    task = ["loss=dpo,ipo", "seed=range(3)"]
    record = {"hydra": {"overrides": {"task": task}, "sweeper": {"_target_": "x.BasicSweeper", "params": None}}}
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump(record))
    assert planned_runs(tmp_path) == 6
    assert [not_begun([tmp_path], runs) for runs in (2, 6, 7)] == [4, 0, 0]
    write_run(tmp_path / "0", rows=ROWS, metrics=finals(ROWS[1]))
    with training(tmp_path / "1", "ipo"), serving(tmp_path) as server:
        names(state_of(server)["message"], "1 of 6 runs finished", "1 running", "4 not begun")
    (tmp_path / "multirun.yaml").write_text("hydra: [")
    assert planned_runs(tmp_path) is None
    assert planned_runs(tmp_path / "nowhere") is None
    assert not_begun([tmp_path], 2) == 0, "nobody knows"


# ---- nothing else is served


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:9000", "127.0.0.1:1"])
def test_local_hosts_are_served(tmp_path, host):
    with serving(tmp_path) as server:
        assert ask(server, "/state", {"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "localhost:80x", "localhost.", "[::1]", None],
)
def test_other_hosts_are_refused(tmp_path, host):
    write_run(tmp_path / "secret_run", rows=ROWS, metrics=finals(ROWS[1]))
    with serving(tmp_path) as server:
        for path in ("/", "/state", "/update"):
            status, _, body = ask(server, path, {} if host is None else {"Host": host})
            assert status == 403
            assert b"secret_run" not in body


def test_no_file_and_no_other_method(tmp_path):
    run = write_run(tmp_path / "a", rows=ROWS, metrics=finals(ROWS[1]))
    with serving(tmp_path) as server:
        for path in (f"/{run.name}/config.yaml", "/../a/config.yaml", str(run / "config.yaml"), "/state?x"):
            assert ask(server, path)[0] == 404, path
        host = {"Host": "localhost", "Content-Length": "0"}
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
            assert ask(server, "/state", host, method)[0] == 501, method
        _, headers, _ = ask(server, "/")
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_only_this_machine_is_listened_to(tmp_path):
    with serving(tmp_path) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        with socket.socket() as other:
            other.settimeout(10)
            assert other.connect_ex(("127.0.0.2", server.server_address[1])) != 0


# ---- the command


def started(*arguments: object) -> tuple[subprocess.Popen[str], str]:
    """The command in a process of its own, once it has said where it serves."""
    command = [sys.executable, "-m", "caldpo.compare", *map(str, arguments), "watch=true"]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored where tests run in the background
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    assert process.stdout is not None
    return process, process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_cleanly_and_writes_the_report(tmp_path, number):
    write_run(tmp_path / "a", rows=ROWS, metrics=finals(ROWS[1]))
    process, line = started(tmp_path, "dpi=40")
    assert "http://127.0.0.1:" in line
    process.send_signal(number)
    output, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (0, "")
    names(output, "report.html", "comparison.csv")
    assert (tmp_path / "report.html").is_file()


def test_without_a_finished_run_no_report_is_written(tmp_path):
    process, _ = started(tmp_path / "sweep")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (0, "")
    names(output, "no run has finished")
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken(tmp_path, capsys):
    with serving(tmp_path) as server, pytest.raises(SystemExit):
        main([str(tmp_path), "watch=true", f"port={server.server_address[1]}"])
    names(capsys.readouterr().err, key="port", value=server.server_address[1], remedy="0")


def test_what_cannot_be_watched(tmp_path, capsys):
    (tmp_path / "chart.csv").write_text("Step\n")
    for arguments, key in ((["port=70000"], "port"), ([str(tmp_path / "chart.csv")], "sweep"), (["watch=7"], "watch")):
        with pytest.raises(SystemExit):
            main([str(tmp_path), "watch=true", *arguments])
        names(capsys.readouterr().err, key=key)
