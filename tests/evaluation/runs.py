"""Small trained runs for evaluations to look at, made by the training command itself."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedModel

from caldpo.models.random_init import RandomModel
from tests.helpers.command import call, train
from tests.helpers.tiny import tiny_tokenizer

# run from a folder that `write_data` filled
TINY_RUN = (
    "model=random",
    "model.tokenizer=tokenizer",
    "model.hidden_size=16",
    "data=local",
    "data.train=train.jsonl",
    "data.test=test.jsonl",
    "data.micro_batch_size=8",
    "loss=dpo",
    "optim.lr=0.02",
    "trainer.max_steps=8",
    "trainer.val_check_interval=null",
    "trainer.progress_bar=false",
    "logger=csv",
    "console=compact",
    "callbacks.samples.prompts=0",
    "callbacks.oracle.max_new_tokens=6",
)

QUICK = ("preference.resamples=20", "displacement.resamples=20")


def write_data(folder: Path, pairs: int = 40) -> None:
    """A tokenizer, training pairs, and held-out pairs with scores, two of each prompt."""
    rng = random.Random(0)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    tokenizer.save_pretrained(folder / "tokenizer")

    def response(last: str) -> str:
        return "".join(f" w{rng.randrange(8)}" for _ in range(rng.randint(1, 6))) + f" {last}"

    def row(prompt: str, ends: tuple[str, str] = ("w9", "w8")) -> dict[str, object]:
        scores = {"score_chosen": rng.random() + 0.5, "score_rejected": rng.random() - 0.5}
        return {"prompt": prompt, "chosen": response(ends[0]), "rejected": response(ends[1]), **scores}

    splits = {
        "train": [row(f"w{i % 40} w{i // 40 + 1} w3") for i in range(pairs)],
        # of every fifth prompt both pairs are the other way round: no policy gets them right
        "test": [
            row(f"w{i // 2} w2 w7 w{i // 2 % 5}", ("w8", "w9") if i // 2 % 5 == 4 else ("w9", "w8"))
            for i in range(pairs)
        ],
    }
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The folder as the current one; commands take relative paths from it."""
    with contextlib.chdir(folder):
        yield


def tiny_run(folder: Path, *overrides: str, run: str = "run") -> Path:
    """Train a tiny policy in ``folder / run``."""
    with inside(folder):
        train(*TINY_RUN, f"hydra.run.dir={run}", *overrides)
    return folder / run


def evaluate(*arguments: str, fails: int | None = None) -> None:
    """Run ``caldpo.evaluate`` in this process, from the current folder."""
    from caldpo.evaluate import main

    call(main, arguments, fails)


def result(run: Path, suite: str) -> dict:
    """What an evaluation wrote."""
    return json.loads((run / "evaluation" / f"{suite}.json").read_text())


def value(content: dict, name: str) -> float:
    """A measure's value."""
    return content["measures"][name]["value"]


def reference_model() -> PreTrainedModel:
    """What the tiny runs started from; made from the current folder."""
    return RandomModel(tokenizer="tokenizer", hidden_size=16).load_policy()


def runs(sweep: Path) -> list[Path]:
    return sorted(path.parent for path in sweep.glob("*/summary.json"))
