"""The commands as a person types them: help, mistakes and bad values answer at once, in plain words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from caldpo import __version__, cli
from caldpo.compare import main as compare
from caldpo.evaluate import main as evaluate
from caldpo.generate import main as generate
from caldpo.train import main as train
from tests.helpers.messages import names

ROOT = Path(__file__).parents[1]
# A run that would need no generated data; nothing of it is ever loaded here.
RUN = ["model=random", "model.tokenizer=nowhere", "data=local", "data.train=pairs.jsonl", "logger=none"]
HEAVY = ("torch", "transformers", "datasets", "pytorch_lightning", "wandb", "matplotlib", "pandas")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands work from any folder; this one has a file of pairs, which is looked for before anything else."""
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def answer(capsys: pytest.CaptureFixture[str], command, *arguments: str) -> tuple[int, str]:
    """Exit code, and what is printed, of a command that stops by itself."""
    with pytest.raises(SystemExit) as stopped:
        command(list(arguments))
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert "Traceback" not in text
    assert "HYDRA_FULL_ERROR" not in text
    return stopped.value.code, text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["loss.betta=1"], ["loss.betta:", "did you mean beta?", "calibration_weight"]),
        (["sed=1"], ["sed:", "did you mean seed?", "reward_beta"]),
        (["los=dpo"], ["los:", "did you mean loss?"]),
        (["loss=dppo"], ["loss=dppo:", "did you mean dpo?", "cal_dpo, ", "slic"]),
        (["loss.beta=-1"], ["loss.beta=-1:", "> 0"]),
        (["loss.beta=nan"], ["loss.beta=nan:", "> 0"]),
        (["loss.beta=abc"], ["loss.beta=abc:", "> 0"]),
        (["loss.targets=foo"], ["loss.targets=foo:", "fixed, scores"]),
        (["+loss.label_smoothing=0.1"], ["loss.label_smoothing:"]),
        (
            ["loss=dpo", "loss.label_smoothing=0.7"],
            ["loss.label_smoothing=0.7:", ">= 0", "< 0.5"],
        ),
        (["trainer.max_steps=1.5"], ["trainer.max_steps=1.5:", "number"]),
        (["optim.schedule.decay=cos"], ["optim.schedule.decay=cos", "cosine"]),
        (["name=../.."], ["name=../..:", "folder"]),
        (["data.train=???"], ["data.train:", "data.train=..."]),
        (["loss.beta=[1,"], ["loss.beta=[1,:"]),
        (["nonsense"], ["nonsense:", "key=value"]),
        (["loss=dpo,ipo"], ["loss=dpo,ipo:", "-m"]),
        (["-m", "loss=dpo,ippo"], ["loss=ippo:", "did you mean ipo?"]),
        (["loss=dpo,ipo", "seed=0,-1", "-m"], ["seed=-1:", ">= 0"]),
        (["-m", "seed=0,1", "trainer.devices=2"], ["trainer.devices=2", "submitit"]),
        (["-m", "--cfg", "job"], ["-m", "--cfg"]),
        (["--config-dir", "nowhere"], ["--config-dir=nowhere:"]),
        (["--mulltirun"], ["--mulltirun:", "did you mean --multirun?"]),
    ],
)
def test_a_mistake_is_answered(arguments: list[str], said: list[str], capsys) -> None:
    code, text = answer(capsys, train, *RUN, *arguments)
    assert code == 2
    names(text, *said)
    assert not Path("outputs").exists()


def test_data_of_ones_own_has_to_be_named(capsys) -> None:
    code, text = answer(capsys, train, *RUN[:3], "logger=none")
    assert code == 2
    names(text, "error: data.train:", remedy="data.train=...")


def test_help_lists_groups_options_and_examples(capsys) -> None:
    code, text = answer(capsys, train, "--help")
    assert code == 0
    for group, option in [
        ("loss", "cal_dpo"),
        ("data", "ultrafeedback"),
        ("model", "zephyr"),
        ("logger", "wandb"),
    ]:
        (line,) = [line for line in text.splitlines() if line.startswith(f"{group}: ")]
        assert option in line.split(": ")[1].split(", ")
    assert "python -m caldpo.train -m loss=" in text
    assert "$" not in text  # nothing of the template is left


def test_the_configuration_can_be_shown_while_values_are_missing(capsys) -> None:
    train([*RUN[:3], "logger=none", "--cfg", "job"])
    assert "train: ???" in capsys.readouterr().out


def test_compare_takes_a_folder(capsys) -> None:
    code, text = answer(capsys, compare, "no such, folder")
    assert code != 0
    assert "no such, folder" in text
    code, text = answer(capsys, compare)
    assert code == 2
    names(text, "error: sweep:", remedy="python -m caldpo.compare outputs/SWEEP")
    code, text = answer(capsys, compare, "band=both")
    names(text, "band=both:", "sweep:")  # with a second problem, both are told
    code, text = answer(capsys, compare, "x", "bandd=sd")
    names(text, "error: bandd:", "did you mean band?")
    code, text = answer(capsys, compare, "x", "band=both")
    names(text, "error: band=both:", "range, sd")


@pytest.mark.parametrize("place", range(len(cli._COMMANDS)))
def test_every_command_tells_its_own_version(place: int, capsys) -> None:
    name = list(cli._COMMANDS)[place]
    cli.main([name, "--version"])
    assert capsys.readouterr().out == f"caldpo {__version__}\n"


def made_run(name: str) -> str:
    """A folder that looks like a run; nothing of it is ever loaded here."""
    folder = Path(name)
    folder.mkdir(parents=True)
    for file in ("config.yaml", "metrics.csv", "summary.json"):
        (folder / file).write_text("{}")
    return name


@pytest.mark.parametrize("command", [evaluate, generate])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["error: run:", "run=outputs/RUN", "model.path"]),
        (["nowhere"], ["nowhere:"]),
        (["run", "sed=1"], ["sed:", "did you mean seed?"]),
        (["run", "model.pth=x"], ["model.pth:", "did you mean path?"]),
        (["run", "device=gpu"], ["device=gpu:", "auto, cpu, cuda"]),
        (["run", "checkpoint=newest"], ["checkpoint=newest:", "final, last", "best", ">= 0"]),
        (["run", "batch=0"], ["batch=0:", "> 0"]),
        (["run", "model.path=x"], ["model.path=x:", "run=run"]),
        (["model.path=x", "data=hh", "checkpoint=3"], ["checkpoint=3:", "run"]),
        (["run", "data=hhh"], ["data=hhh:", "did you mean hh?"]),
        (["run", "+loss=dpo"], ["loss:", "group"]),
    ],
)
def test_a_mistake_about_what_to_look_at_is_answered(command, arguments: list[str], said: list[str], capsys) -> None:
    made_run("run")
    code, text = answer(capsys, command, *arguments)
    assert code == 2
    names(text, *said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["suite=preferense"], ["suite=preferense:", "did you mean preference?", "displacement"]),
        (["suite=[preference,orakle]"], ["suite=orakle:", "did you mean oracle?"]),
        (["suites=oracle"], ["suites:", "did you mean suite?"]),
        (["suite=preference,oracle"], ["suite=preference,oracle:", "suite=[...]"]),
        (["preference.binns=3"], ["preference.binns:", "did you mean bins?"]),
        (["preference.confidence=95"], ["preference.confidence=95:", "> 0", "< 1"]),
        (["report=maybe"], ["report=maybe:", "true", "false"]),
        (["prompts=[a]"], ["prompts:"]),
    ],
)
def test_a_mistake_about_suites_is_answered(arguments: list[str], said: list[str], capsys) -> None:
    code, text = answer(capsys, evaluate, made_run("run"), *arguments)
    assert code == 2
    names(text, *said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["temprature=1"], ["temprature:", "did you mean temperature?"]),
        (["temperature=-1"], ["temperature=-1:", ">= 0"]),
        (["count=0"], ["count=0:", "> 0"]),
        (["prompts=[1]"], ["prompts=[1]:", "list", "text", "quote"]),
        (["prompts=[]"], ["prompts=[]:", "prompt"]),
        (["prompts=nowhere.txt"], ["prompts=nowhere.txt:", "file"]),
        (["prompts=Hello"], ["prompts=Hello:", "list", ".txt", ".jsonl"]),
        (["prompts=[a]", "chat=true"], ["prompts:", "chat=true"]),
        (["samples=2", "chat=true"], ["samples=2:", "chat=true"]),
        (["as_chat=maybe"], ["as_chat=maybe:", "true", "false", "null"]),
        (["suite=preference"], ["suite:"]),
    ],
)
def test_a_mistake_about_generating_is_answered(arguments: list[str], said: list[str], capsys) -> None:
    code, text = answer(capsys, generate, made_run("run"), *arguments)
    assert code == 2
    names(text, *said)


def test_responses_are_read_of_one_run(capsys) -> None:
    runs = [made_run(f"sweep/loss=dpo,seed={seed}") for seed in range(10)]
    code, text = answer(capsys, generate, "sweep")
    assert code == 2
    names(text, "error: run=sweep:", "10 runs", *(f"'{run}'" for run in runs[:8]), "2 more")


def test_a_model_is_asked_something(capsys) -> None:
    code, text = answer(capsys, generate, "model.path=x")
    assert code == 2
    names(text, "error: prompts:", "model.path")
    code, text = answer(capsys, evaluate, "model.path=x")
    assert code == 2
    names(text, "error: data:", "model.path", "pairs")


@pytest.mark.parametrize(("command", "keys"), [(evaluate, ["suite=", "displacement"]), (generate, ["chat", "as_chat"])])
def test_help_of_what_looks_at_runs(command, keys: list[str], capsys) -> None:
    code, text = answer(capsys, command, "--help")
    assert code == 0
    for fragment in ("FOLDER [", "Examples", *keys):
        assert fragment in text
    assert "$" not in text


class TestConsoleScript:
    def test_usage(self, capsys) -> None:
        for arguments in ([], ["--help"], ["-h"]):
            cli.main(arguments)
            out = capsys.readouterr().out
            for name in ("train ", "evaluate ", "generate ", "compare "):
                assert f"\n  {name}" in out
        cli.main(["--version"])
        assert capsys.readouterr().out == f"caldpo {__version__}\n"

    def test_unknown_commands(self, capsys) -> None:
        code, text = answer(capsys, cli.main, "trian", "loss=dpo")
        assert code == 2
        names(text, "trian:", "did you mean train?")

    def test_hands_over(self, capsys) -> None:
        code, text = answer(capsys, cli.main, "train", *RUN, "loss.betta=1")
        assert code == 2
        assert "loss.betta" in text
        code, text = answer(capsys, cli.main, "compare", "nowhere")
        assert "nowhere" in text


def test_nothing_heavy_is_loaded_for_an_answer(tmp_path: Path) -> None:
    """One process gives all kinds of answers, and has not imported torch or its like afterwards."""
    script = f"""
import sys
from caldpo.cli import main
run = {RUN}
lines = [["--help"], ["train", "--help"], ["compare", "--help"], ["train", *run, "loss.betta=1"],
         ["train", *run, "loss=dppo"], ["train", *run, "loss.beta=-1"], ["train", *run, "-m", "seed=0,-1"],
         ["train", *run, "--cfg", "job"], ["compare", "nowhere"], ["evaluate", "--help"], ["generate", "--help"],
         ["evaluate", "nowhere", "suite=preferense"], ["generate", "nowhere"], ["generate", "x", "count=0"]]
for line in lines:
    try:
        main(line)
    except SystemExit:
        pass
print("HEAVY:", *[m for m in {HEAVY} if m in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1].split() == ["HEAVY:"]
    names(done.stderr, "loss.beta=-1:", "> 0")


@pytest.mark.parametrize("command", [["caldpo.train"], ["caldpo", "train"]])
def test_python_dash_m_from_any_folder(command: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command, *RUN, "loss.beta=-1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    unit = "(the log-ratios are pulled to rewards / beta, +-1 / (2 beta) nats)"  # what the yaml says of it
    (line,) = done.stderr.splitlines()
    names(line, "error: loss.beta=-1:", "> 0", unit)
