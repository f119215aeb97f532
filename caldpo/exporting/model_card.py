"""The model card of a run, made of the run's own files: what was trained, how, what came of it, and what is not known.

Nothing of the machine is in it: paths are cut to their last part, and secrets are masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from caldpo.exporting.card_facts import (
    citations,
    data_lines,
    published_base,
    published_data,
    settings_of,
    tracking,
    without_places,
)
from caldpo.report import shown_metrics
from caldpo.report.escaping import code, command, plain, shell_block
from caldpo.report.read_runs import read_run
from caldpo.report.run_files import FINISHED, Run, as_float
from caldpo.report.table_cells import markdown_table
from caldpo.security.secrets import redact_text
from caldpo.utils.atomic_io import write_text
from caldpo.utils.text_format import number, with_interval

__all__ = ["CARD", "PICTURE", "Exported", "card", "draw", "published_base", "write_card"]

CARD, PICTURE = "README.md", "reward_dynamics.png"
_DPI = 90
_NOT = (
    "It is not claimed to be better than its base or than policies of other losses: the figures above are those of one"
    " run, on held-out pairs of the data that it was trained on. It was not looked at for harm, bias or facts unless"
    " a table above says so, and what the base and the data bring, it has. No licence is given here, because the run"
    " does not know it: those of the base and of the data apply."
)


@dataclass(frozen=True)
class Exported:
    """Which weights a card is about.

    Args:
        step: optimiser steps that they have seen; None where the run does not say.
        is_end: whether these are all that the run took.
        adapter: whether they are an adapter alone.
        merged: whether an adapter was folded in.
    """

    step: int | None
    is_end: bool
    adapter: bool
    merged: bool = False


def write_card(run_dir: Path, path: Path, what: Exported, *, picture: bool) -> None:
    """Write the card of the run in ``run_dir``.

    Args:
        picture: whether :data:`PICTURE` lies beside it.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, card(read_run(run_dir, run_dir.parent), what, picture=picture))


def draw(run_dir: Path, path: Path) -> bool:
    """Draw the run's curves on held-out pairs; False where it has none. Imports matplotlib."""
    run = read_run(run_dir, run_dir.parent)
    if not shown_metrics.CHOSEN.curve(run.curves):
        return False
    from caldpo.report.comparison_facts import headline
    from caldpo.report.dynamics_plot import reward_dynamics
    from caldpo.report.grouping import group
    from caldpo.report.plot_style import save

    settings = group([replace(run, status=FINISHED)])  # one that was stopped has curves, too; the card says that it was
    save(reward_dynamics(settings, without_places(headline(settings)), "range"), path, _DPI)
    return True


def card(run: Run, what: Exported, *, picture: bool) -> str:
    """The card as Markdown with its front matter."""
    sections = [
        _front_matter(run, what),
        f"# {_title(run, what)}",
        _remarks(run, what),
        _loss(run),
        "## Data\n\n" + "\n".join(f"- {line}" for line in data_lines(run.summary.get("data"), run)),
        _held_out(run, what),
        f"![Log-ratios and implicit rewards of held-out pairs over training]({PICTURE})" if picture else "",
        *_evaluations(run, what),
        "## Settings\n\n" + markdown_table(["key", "value"], settings_of(run), text_columns=2),
        _use(run, what),
        _again(run),
        f"## What it is not\n\n{_NOT}",
    ]
    return without_places(redact_text("\n\n".join(part for part in sections if part)), run.folder) + "\n"


def _front_matter(run: Run, what: Exported) -> str:
    base, data = published_base(run.resolved, run.summary), published_data(run.resolved)
    facts: dict[str, Any] = {"library_name": "peft" if what.adapter else "transformers"}
    facts["pipeline_tag"] = "text-generation"
    if base is not None:
        facts |= {"base_model": base, "base_model_relation": "adapter" if what.adapter else "finetune"}
    if data:
        facts["datasets"] = data
    facts["tags"] = ["caldpo", "preference-learning", run.loss.replace("_", "-")]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"


def _title(run: Run, what: Exported) -> str:
    base = published_base(run.resolved, run.summary)
    on = f" on {base}" if base else ""
    kind = " (adapter)" if what.adapter else " (adapter merged)" if what.merged else ""
    return f"{run.loss}{on}{kind}, {_after(what)}"


def _after(what: Exported) -> str:
    return "number of steps unknown" if what.step is None else f"after {what.step} optimiser steps"


def _remarks(run: Run, what: Exported) -> str:
    """What has to be known before anything else is believed."""
    told = list(_doubts(run, what))
    who = run.summary.get("policy", "unknown")
    return f"Policy: {who}. Reference: {run.summary.get('reference', 'unknown')}." + "".join(
        f"\n\n> **Note.** {plain(text)}" for text in told
    )


def _doubts(run: Run, what: Exported) -> Iterator[str]:
    if not run.finished:
        yield f"The run is incomplete: {run.status}, {run.progress}."
    elif not what.is_end:
        yield f"This is a checkpoint in the middle of a run of {run.summary.get('steps')} steps."
    for alarm in run.summary.get("alarms") or []:
        if isinstance(alarm, Mapping) and _is_of(alarm.get("step"), what):
            yield f"Alarm at step {alarm.get('step')}: {alarm.get('text', alarm.get('alarm'))}"
    if run.summary.get("skipped_steps"):
        yield f"{run.summary['skipped_steps']} optimiser steps were left out because loss or gradient was not finite."
    setting = run.resolved.get
    if what.adapter and setting("adapter.init_from") and setting("adapter.init_mode") == "merged":
        yield (
            "This adapter belongs on a base that an earlier adapter was merged into, which no name stands for: export"
            " with merge=true to have one model."
        )
    if what.merged and setting("adapter._target_", "").endswith(".QLora"):
        yield f"The base was rounded to {setting('adapter.bits')} bits: these are its rounded weights, widened."
    for note in run.notes:
        yield f"Of the run's files: {note}."


def _is_of(step: Any, what: Exported) -> bool:
    return what.step is None or not isinstance(step, int) or step <= what.step


def _loss(run: Run) -> str:
    formula = run.summary.get("formula")
    lines = [f"## Loss\n\n{code(run.loss)}" + (f", per pair: {code(formula)}" if formula else "")]
    if formula:
        lines.append("a, b: log pi(y|x) - log pi_ref(y|x) of the chosen and the rejected response, nats.")
    cited = citations(str(run.resolved.get("loss._target_", "")))
    if cited:
        lines.append("Defined in " + ", ".join(f"[arXiv {key}](https://arxiv.org/abs/{key})" for key in cited) + ".")
    return "\n\n".join(lines)


def _held_out(run: Run, what: Exported) -> str:
    """Metrics at the exported step; those of a checkpoint between two evaluations are the ones before it, said so."""
    rows = []
    for metric in (*shown_metrics.HELD_OUT, *(shown_metrics.ORACLE if what.is_end else ())):
        curve = {s: v for s, v in metric.curve(run.curves).items() if what.step is None or s <= what.step}
        final = metric.final(run.final) if what.is_end else None
        step = what.step if final is not None else max(curve, default=None)
        value = final if final is not None else None if step is None else curve[step]
        if value is not None:
            rows.append([metric.title, number(value), metric.unit, str(step), metric.meaning])
    if not rows:
        return "## Held-out metrics\n\nNone were logged."
    head = ["metric", "value", "unit", "step", "meaning"]
    seed = f"One run, seed {run.seed}: nothing here says how much another seed would differ."
    return f"## Held-out metrics\n\n{markdown_table(head, rows)}\n\n{seed}"


def _evaluations(run: Run, what: Exported) -> Iterator[str]:
    """The suites that measured the run's end; they are no figures of a checkpoint."""
    for suite, content in run.evaluation.items() if what.is_end else ():
        rows = []
        for name, measure in content["measures"].items():
            if isinstance(measure, Mapping) and measure.get("main"):
                value, ends = as_float(measure.get("value")), [measure.get("low"), measure.get("high")]
                known = all(isinstance(end, int | float) for end in ends)
                text = with_interval(value, *map(as_float, ends)) if known else number(value)
                n = measure.get("n")
                rows.append([str(measure.get("title", name)), text, str(measure.get("unit", "")), f"{n if n else ''}"])
        if rows:
            notes = "".join(f"\n\n> {plain(note)}" for note in content.get("notes") or [])
            table = markdown_table(["measure", "value [interval]", "unit", "n"], rows)
            yield f"## Evaluation: {plain(suite)}\n\n{table}{notes}"


def _use(run: Run, what: Exported) -> str:
    if what.adapter:
        base = published_base(run.resolved, run.summary) or "BASE"
        code = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "FOLDER")\n'
        )
        serve = ""
    else:
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'policy = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        )
        serve = "\n\nWith vLLM (not tried): `vllm serve FOLDER`."
    code += 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    return f"## Use\n\n```python\n{code}\n```{serve}"


def _again(run: Run) -> str:
    said = [str(text) for text in run.summary.get("overrides") or run.overrides]
    kept = [text for text in said if not text.startswith(("resume=", "hydra."))]
    lines = [f"## Train it again\n\n{shell_block([command(['python', '-m', 'caldpo.train', *kept])])}"]
    lines.append(f"Seed {run.seed}. Names of folders and files are cut to their last part.")
    versions = run.summary.get("versions")
    if isinstance(versions, Mapping):
        lines.append("Versions: " + ", ".join(f"{name} {value}" for name, value in versions.items()) + ".")
    lines.append(tracking(run.summary))
    return "\n\n".join(line for line in lines if line)
