"""Two tasks about words in LM Eval's own yaml, and an interpreter whose harness knows these alone."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

ASKED = 20
_LAUNCHER = """#!{python}
# runs what an interpreter is asked to run; LM Eval's command line does without its 14,000 own tasks, to be fast
import runpy, sys
sys.argv = sys.argv[1:]
if sys.argv[0] == "-m":
    from lm_eval.tasks.manager import TaskManager
    whole = TaskManager.__init__
    TaskManager.__init__ = lambda self, **keys: whole(self, **(keys | {{"include_defaults": False}}))
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextmanager
def data_sets_in(folder: Path) -> Iterator[None]:
    """Data sets are cached there, by this process and by those it starts."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield


def write_tasks(folder: Path, continuation: Any) -> dict[str, list[dict[str, Any]]]:
    """``word_choice`` (three choices) and ``word_answer`` (three words); their questions by name.

    Args:
        folder: of the yaml files and their data.
        continuation: gives the true answer to a question; every second question of ``word_answer`` gets a wrong one.
    """
    rng = random.Random(1)
    words = [f"w{i}" for i in range(30)]
    questions = [" ".join(rng.sample(words, 4)) for _ in range(ASKED)]
    choice = [
        {"question": q, "choices": [" ".join(rng.choices(words, k=k)) for k in (1, 2, 2)], "label": i % 3}
        for i, q in enumerate(questions)
    ]
    answer = [{"question": q, "answer": continuation(q) if i % 2 else "w39 w39"} for i, q in enumerate(questions)]
    common = {"dataset_path": "json", "test_split": "test", "doc_to_text": "question"}
    metric = {"aggregation": "mean", "higher_is_better": True}
    own = {
        "word_choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "tag": "word_tasks",
            "metric_list": [{"metric": "acc", **metric}],
        },
        "word_answer": {
            "output_type": "generate_until",
            "doc_to_target": "answer",
            "tag": ["word_tasks", "others"],
            "generation_kwargs": {"until": ["<eos>"], "max_gen_toks": 3, "do_sample": False},
            "metric_list": [{"metric": "exact_match", **metric}],
        },
    }
    folder.mkdir()
    questions_of = {"word_choice": choice, "word_answer": answer}
    for name, rows in questions_of.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {"task": name, **common, **own[name], "dataset_kwargs": {"data_files": {"test": str(data)}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return questions_of


def quick_python(folder: Path) -> Path:
    """An interpreter for ``leaderboard.python``."""
    path = folder / "python"
    path.write_text(_LAUNCHER.format(python=sys.executable))
    path.chmod(0o755)
    return path
