"""Sample responses of ``python -m caldpo.generate``, print them and write them as a table."""

from __future__ import annotations

from dataclasses import fields

import transformers
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from caldpo.config.run_lock import GENERATION, run_lock
from caldpo.data.pair import Message
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.evaluation_cache import EvaluationCache
from caldpo.evaluation.evaluation_console import print_policy
from caldpo.evaluation.evaluation_settings import GenerateSettings
from caldpo.evaluation.evaluation_target import find_folders, read_target
from caldpo.generation.chat import converse
from caldpo.generation.generation_checks import read_prompts
from caldpo.generation.generation_output import (
    GENERATIONS,
    print_legend,
    print_prompt,
    print_responses,
    rows_of,
    write_table,
)
from caldpo.generation.responses import Prompt, as_prompt, find_form, respond, true_reward


def generate(cfg: DictConfig) -> None:
    """Sample from the one run or model of ``cfg``.

    Raises:
        CaldpoError: it cannot be sampled from with these settings.
    """
    plain: dict[str, object] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    settings = GenerateSettings(**{f.name: plain[f.name] for f in fields(GenerateSettings)})  # type: ignore[arg-type]
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    (folder,) = find_folders(cfg)  # exactly one by check_generation
    target = read_target(cfg, folder)
    print_policy(console, target.name)
    policy = EvaluatedPolicy(target, EvaluationCache(settings, cfg.reference.path))
    compare = settings.compare and policy.reference_identity is not None
    if compare:
        policy.require_reference("generate")
    if settings.chat:
        converse(policy, settings, console, compare=compare)
    else:
        _answer_prompts(policy, settings, console, compare=compare)


def _answer_prompts(policy: EvaluatedPolicy, settings: GenerateSettings, console: Console, *, compare: bool) -> None:
    prompts = _prompts(policy, settings, console)
    sampling = policy.sampling(len(prompts), settings.samples, settings.max_new_tokens, settings.temperature)
    file = policy.folder / GENERATIONS
    with run_lock(policy.folder, GENERATION):  # before sampling, which takes long
        answers = respond(policy, prompts, sampling, compare=compare)
        rows = [
            row
            for prompt, responses in zip(prompts, answers, strict=True)
            for row in rows_of(prompt.content, responses, sampling)
        ]
        write_table(file, rows)
    for number, (prompt, responses) in enumerate(zip(prompts, answers, strict=True), start=1):
        print_prompt(console, f"\nprompt {number} of {len(prompts)}", prompt.content)
        text = prompt.chosen
        chosen = None if text is None else (text, true_reward(policy, prompt.content, text))
        print_responses(console, responses, chosen)
    print_legend(console, [response for responses in answers for response in responses])
    console.print(f"written to {file}", highlight=False, markup=False, soft_wrap=True)


def _prompts(policy: EvaluatedPolicy, settings: GenerateSettings, console: Console) -> list[Prompt]:
    """Return the user's prompts, or the first distinct held-out ones, truncated as in training."""
    if settings.prompts is None:
        return [Prompt(row.prompt, row.prompt_ids, row.reference) for row in policy.held_out(settings.count)]
    contents = read_prompts(settings.prompts)
    as_turn, form = find_form(policy, settings.as_chat)
    if any(isinstance(content, str) for content in contents):
        console.print(form, style="dim", highlight=False, soft_wrap=True)
    if as_turn:
        contents = [(Message(role="user", content=c),) if isinstance(c, str) else c for c in contents]
    return [as_prompt(policy, content) for content in contents]
