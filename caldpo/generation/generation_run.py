"""``python -m caldpo.generate``: responses on the terminal and in a table."""

from __future__ import annotations

from dataclasses import fields

import transformers
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from caldpo.config.run_lock import GENERATION, run_lock
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.evaluation_cache import EvaluationCache
from caldpo.evaluation.evaluation_console import print_subject
from caldpo.evaluation.evaluation_settings import GenerateSettings
from caldpo.evaluation.evaluation_target import find_folders, read_target
from caldpo.generation.chat import converse
from caldpo.generation.generation_console import print_legend, print_prompt, print_responses
from caldpo.generation.generation_table import GENERATIONS, rows_of, write_table
from caldpo.generation.prompt_forms import find_form, given, held_out
from caldpo.generation.responses import Prompt, respond, true_reward
from caldpo.generation.user_prompts import read_prompts


def generate(cfg: DictConfig) -> None:
    """Sample from the one run or model that ``cfg`` names.

    Raises:
        CaldpoError: it cannot be sampled from as it is asked for.
    """
    plain: dict[str, object] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    settings = GenerateSettings(**{f.name: plain[f.name] for f in fields(GenerateSettings)})  # type: ignore[arg-type]
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    (folder,) = find_folders(cfg)  # the configuration check saw to it that there is one
    target = read_target(cfg, folder)
    print_subject(console, target.name)
    subject = EvaluatedPolicy(target, EvaluationCache(settings, cfg.reference.path))
    compare = settings.compare and subject.reference_identity is not None
    if settings.chat:
        converse(subject, settings, console, compare=compare)
    else:
        _answer(subject, settings, console, compare=compare)


def _answer(subject: EvaluatedPolicy, settings: GenerateSettings, console: Console, *, compare: bool) -> None:
    """Answer the prompts of the settings."""
    prompts = _prompts(subject, settings, console)
    how = subject.sampling(len(prompts), settings.samples, settings.max_new_tokens, settings.temperature)
    file = subject.folder / GENERATIONS
    with run_lock(subject.folder, GENERATION):  # before the samples are drawn, which takes a while
        answers = respond(subject, prompts, how, compare=compare)
        rows = [r for p, responses in zip(prompts, answers, strict=True) for r in rows_of(p.asked, responses, how)]
        write_table(file, rows)
    for place, (prompt, responses) in enumerate(zip(prompts, answers, strict=True), start=1):
        print_prompt(console, f"\nprompt {place} of {len(prompts)}", prompt.asked)
        chosen = prompt.chosen
        told = None if chosen is None else (chosen, true_reward(subject, prompt.asked, chosen))
        print_responses(console, responses, told)
    print_legend(console, [response for responses in answers for response in responses])
    console.print(f"written to {file}", highlight=False, markup=False, soft_wrap=True)


def _prompts(subject: EvaluatedPolicy, settings: GenerateSettings, console: Console) -> list[Prompt]:
    """Those that were given, or held-out ones."""
    if settings.prompts is None:
        return held_out(subject, settings.count)
    asked = read_prompts(settings.prompts)
    form = find_form(subject, settings.as_chat)
    if any(isinstance(prompt, str) for prompt in asked):
        console.print(str(form), style="dim", highlight=False, soft_wrap=True)
    return given(subject, asked, form)
