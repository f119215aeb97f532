"""Every suite by one row, and the recipe for a suite of one's own: one file, one yaml, one row."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldpo.config.conf_dir import conf_dir
from caldpo.evaluation import suites
from caldpo.evaluation.suite_base import Suite
from tests.callbacks.oracle_data import naive_logprob
from tests.evaluation.lm_eval_tasks import data_sets_in
from tests.evaluation.runs import TINY_RUN, evaluate, inside, result, value, write_data
from tests.helpers.command import train
from tests.helpers.messages import names


@dataclass(frozen=True)
class Row:
    """One suite.

    Args:
        measure: one of its measures.
        expected: its value, computed another way from the run's folder.
        keys: overrides beside ``suite=NAME``.
        run: the fixture that trains the run.
        needs: a module of an extra.
    """

    measure: str
    expected: Callable[[Path], float]
    keys: tuple[str, ...] = ()
    run: str = "trained"
    needs: str = "caldpo"


def logged(name: str) -> Callable[[Path], float]:
    """Read what training logged at its end under this name."""
    return lambda run: float(json.loads((run / "summary.json").read_text())["metrics"][name])


def likelier_chosen(run: Path) -> float:
    """Count the pairs whose chosen response is likelier under the policy, by transformers alone."""
    policy = AutoModelForCausalLM.from_pretrained(run / "policy").double()
    tokenizer = AutoTokenizer.from_pretrained(run / "policy")
    right = []
    for row in map(json.loads, (run.parent / "test.jsonl").read_text().splitlines()):
        prompt, chosen, rejected = (tokenizer(row[key]).input_ids for key in ("prompt", "chosen", "rejected"))
        right.append(naive_logprob(policy, prompt, chosen) > naive_logprob(policy, prompt, rejected))
    return float(np.mean(right))


SUITES = {
    "displacement": Row("chosen_fell", logged("val/displacement")),
    "judge": Row("consistency", lambda run: 1.0, ("judge.mock=true",), needs="openai"),  # a coin falls once a pair
    "leaderboard": Row("held_out_pairs", likelier_chosen, ("leaderboard.tasks=[held_out_pairs]",), needs="lm_eval"),
    "oracle": Row("exact_kl", logged("oracle/exact_kl"), ("oracle.prompts=4",), run="table"),
    "preference": Row("accuracy", logged("val/rewards/accuracies")),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a known true reward."""
    home = tmp_path_factory.mktemp("table")
    keys = [key for key in TINY_RUN if not key.startswith(("model", "data"))]
    with inside(home):
        train("model=tabular", "data=tabular", *keys, "trainer.max_steps=4", "hydra.run.dir=run")
    return home / "run"


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_measures_what_is_known_otherwise(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    row = SUITES[name]
    pytest.importorskip(row.needs)
    run: Path = request.getfixturevalue(row.run)
    with inside(run.parent), data_sets_in(tmp_path / "cache"):
        evaluate(str(run), f"output={tmp_path}", f"suite={name}", *row.keys)
    (file,) = (tmp_path / "evaluation").glob("*.json")
    content = json.loads(file.read_text())
    assert value(content, row.measure) == pytest.approx(row.expected(run), rel=1e-5)
    for measure in content["measures"].values():
        assert all(measure[field] for field in ("title", "unit", "meaning"))


def test_one_file_one_yaml_one_row() -> None:
    """The names of suites are those of the yamls; files, packages, classes and rows have them as well."""
    yamls = {file.stem: file.read_text() for file in (conf_dir() / "suite").glob("*.yaml")}
    files = {file.stem for file in Path(suites.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(yamls) == files == set(SUITES)
    for name, text in yamls.items():
        assert text.startswith(f"# @package {name}\n# "), "its package, and a line that describes it"
        module = importlib.import_module(f"caldpo.evaluation.suites.{name}")
        kinds = [k for k in vars(module).values() if isinstance(k, type) and issubclass(k, Suite) and k is not Suite]
        (kind,) = kinds
        assert kind.name == name
        assert f"\n_target_: {module.__name__}.{kind.__name__}\n" in text


# -- a suite of one's own

CODE = """
from collections import Counter
from dataclasses import dataclass

from caldpo.evaluation.suite_base import Measure, Result, Suite


@dataclass(frozen=True, kw_only=True)
class Longest(Suite):
    name = "own_longest"
    unit: int = 1

    def run(self, policy):
        longest = max(len(pair.chosen.split()) for pair in policy.texts)
        measure = Measure(value=longest / self.unit, title="longest", unit="words", meaning="Of the chosen responses.")
        sides = Counter("longer" if len(p.chosen) > len(p.rejected) else "other" for p in policy.texts)
        return Result(measures={"words": measure}, examples=len(policy.pairs), details={"sides": sides})
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path)
    (tmp_path / "longest_suite.py").write_text(CODE)
    (tmp_path / "own/suite").mkdir(parents=True)
    yaml = "# @package own_longest\n_target_: longest_suite.Longest\nunit: 2\n"
    (tmp_path / "own/suite/own_longest.yaml").write_text(yaml)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_suite_of_ones_own_is_found_and_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class beside the project, and a yaml in the folder of ``--config-dir``, which a run may name, too."""
    from caldpo.train import main

    command = [*TINY_RUN, "trainer.max_steps=1", "hydra.run.dir=run", "suites=[own_longest]"]
    with inside(home):
        with pytest.raises(SystemExit):
            main(command)
        names(capsys.readouterr().err, "error: suites=own_longest:")
        main([*command, "--config-dir", "own"])
        evaluate("run", "--config-dir", "own", "own_longest.unit=1")
    longest = max(len(json.loads(line)["chosen"].split()) for line in (home / "test.jsonl").read_text().splitlines())
    assert value(result(home / "run", "own_longest"), "words") == longest
    assert sum(result(home / "run", "own_longest")["details"]["sides"].values()) == 40
