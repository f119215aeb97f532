"""A small evaluated sweep with samples and hostile names, and what of its page a test reads."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from caldpo.config.find_runs import find_runs, sweep_overrides
from caldpo.report.grouping import RunGroup, group_runs
from caldpo.report.page.page_html import render_page
from caldpo.report.read_runs import read_runs
from tests.report.results import content, measure, reliability
from tests.report.runs import finals, held_out, write_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
HOSTILE_PROMPT = f"{HOSTILE} $x$ %{{y}} &lt; \u202ereversed"
PROMPTS = ("The film was a surprise", "A dull evening", HOSTILE_PROMPT)
STEPS = (0, 5, 10, 15, 20)
# chosen and rejected log-ratio, true reward and KL at the end
ENDS = {"dpo": (-8.0, -20.0, 0.4, 6.0), "cal_dpo": (1.0, -4.0, 0.9, 2.0), "ipo": (-2.0, -9.0, 0.5, 3.0)}


def write_sweep(folder: Path) -> Path:
    """Three losses of two seeds each, evaluated, and a run of a hostile name that failed."""
    job = 0
    for loss, (chosen, rejected, reward, kl) in ENDS.items():
        for seed in (0, 1):
            rows = []
            for step in STEPS:
                share = step / STEPS[-1]
                terms = {"terms/contrast": 0.75, "terms/calibration": 0.25} if loss == "cal_dpo" else {}
                rows.append(held_out(step, share * (chosen + seed), share * (rejected + seed), **terms))
            run = folder / f"loss={loss},seed={seed}"
            known = {"oracle__reward": reward + 0.02 * seed, "oracle__kl": kl}
            keys: dict[str, Any] = {"loss_keys": {"beta": 0.1}, "job": job, "overrides": ["trainer.max_steps=20"]}
            keys["summary"] = {"formula": f"formula of {loss} \ud800"}
            evaluation = _evaluation(chosen, rejected, reward + 0.02 * seed, kl)
            write_run(run, loss, seed, rows=rows, metrics=finals(rows[-1], **known), evaluation=evaluation, **keys)
            write_samples(run, loss)
            job += 1
    error = f"CaldpoError: {HOSTILE} at step 6"
    name = "loss=dpo,seed=7 <img src=x onerror=alert(3)>"
    keys = {"status": "failed", "error": error, "loss_keys": {"beta": 0.1}, "config": {"notes": HOSTILE}}
    write_run(folder / name, "dpo", 7, rows=rows[:2], metrics={}, overrides=["notes='a  b'"], **keys)
    record = {"hydra": {"overrides": {"task": ["loss=dpo,cal_dpo,ipo", "seed=0,1"]}}}
    (folder / "multirun.yaml").write_text(yaml.safe_dump(record))
    return folder


def write_samples(run: Path, loss: str) -> None:
    rows = [
        {
            "prompt": prompt,
            "policy": f"{loss} answers {place} {HOSTILE}",
            "reference": f"reference answers {place}",
            "policy_reward": 0.5 + place,
            "reference_reward": 0.25,
            "policy_log_ratio": 1.5 - place,
        }
        for place, prompt in enumerate(PROMPTS)
    ]
    lines = [*(json.dumps(row) for row in rows), "{torn", json.dumps({"prompt": 3})]
    (run / "evaluation" / "oracle_samples.jsonl").write_text("\n".join(lines) + "\n")


def _evaluation(chosen: float, rejected: float, reward: float, kl: float) -> dict[str, Any]:
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    sides = {"chosen": chosen, "rejected": rejected}
    ratios = {"levels": levels, **{side: [middle + i - 2 for i in range(5)] for side, middle in sides.items()}}
    names = ("low", "high", "count", "both_fell")
    lengths = [dict(zip(names, values, strict=True)) for values in ((0, 10, 30, 0.1), (10, 30, 10, 0.3))]
    points = [{"step": step, "kl": kl * step / 20, "reward": reward * step / 20} for step in (0, 10, 20)]
    rewards = {"reward": measure(reward, title="true reward", unit="data's units"), "kl": measure(kl, better=None)}
    bins = reliability((0.2, 0.25, 0.3, 10), (0.8, 0.85, 0.8, 30))
    return {
        "oracle": content(rewards, details={"points": points}),
        "preference": content({"accuracy": measure(0.9)}, details=bins),
        "displacement": content({"both": measure(0.2)}, details={"log_ratios": ratios, "by_length": lengths}),
    }


def read_groups(folder: Path) -> list[RunGroup]:
    return group_runs(read_runs(find_runs(folder), folder))


def render(folder: Path) -> str:
    tasks = [task for task in [sweep_overrides(folder)] if task]
    return render_page(read_groups(folder), [folder], "range", tasks)


class Page(HTMLParser):
    """Tags, attributes, and the text of each element by its tag, as a browser would have them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[tuple[str, str]] = []  # of the innermost element
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "input", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag and text.strip()]


def data_of(text: str) -> dict[str, Any]:
    """The JSON of the page's script."""
    return json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])
