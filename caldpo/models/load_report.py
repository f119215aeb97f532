"""What is seen of a model while it loads, and what is said of it afterwards.

transformers maps safetensors into memory and brings one tensor at a time into the dtype asked for and onto the default
device, so that weights are never held twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from caldpo.models.hub_files import commit_of
from caldpo.models.weight_files import Stored
from caldpo.utils.collectives import is_first_rank

PATIENCE = 2.0
"""Seconds that loading may take without a progress bar."""
_ROUTER_LOSS = re.compile(r"(aux|z|moe|balanc\w*)_loss_?\w*(coef|alpha|weight)|output_router_logits")
_SHOWN = 4  # kinds of tensors that are named in a line


@contextmanager
def patient_bar() -> Iterator[None]:
    """transformers' progress bars appear only where loading takes longer than :data:`PATIENCE`, and leave no trace."""
    hook: Callable[..., Any] | None = getattr(logging, "set_tqdm_hook", None)
    if hook is None:  # they are then shown from the start
        yield
        return

    def patient(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return factory(*args, **{"delay": PATIENCE, "leave": False, **options})

    before = hook(patient)
    try:
        yield
    finally:
        hook(before)


@contextmanager
def quiet_report() -> Iterator[None]:
    """Without transformers' table of tensors that do not fit: they are refused or named by whoever loads the model."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def note_unused(names: Iterable[str], files: Mapping[str, Stored], path: str) -> None:
    """Name the tensors of the files that the model has no place for, on the first rank.

    Args:
        names: in the model's terms.
        files: tensors of the files.
        path: of the model.
    """
    unused = sorted(names)
    if not unused or not is_first_rank():
        return
    groups = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in unused)
    shown = ", ".join(f"{name} ({count} of them)" if count > 1 else name for name, count in groups.most_common(_SHOWN))
    more = f" and {len(groups) - _SHOWN} other kinds" if len(groups) > _SHOWN else ""
    where = f" ({files[unused[0]].file})" if unused[0] in files else ""
    Console().print(
        f"note: {len(unused):,} tensors of {path}{where} have no place in the model that its config.json describes, and"
        f" are left out: {shown}{more}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def note_router_loss(config: PretrainedConfig) -> None:
    """Say of a mixture of experts that the load-balancing loss of its configuration is no part of training here."""
    asked = dict(_router_losses(config.get_text_config().to_dict()))
    if not asked or not is_first_rank():
        return
    named = ", ".join(f"{name}={'true' if value is True else f'{value:g}'}" for name, value in asked.items())
    Console().print(
        f"note: its config.json asks for a load-balancing loss of the experts' router ({named}), which is not added:"
        " the loss is of the pairs' log-probs alone (and the policy's output_router_logits is off)",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def leave_out_router_loss(config: PretrainedConfig) -> None:
    """Have a mixture of experts not compute that loss, which would be for nothing, and cannot be of packed rows."""
    text = config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False


def _router_losses(settings: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _router_losses(value)
        elif _ROUTER_LOSS.search(str(name)) and isinstance(value, int | float) and value > 0:
            yield str(name), value


def describe_loaded(policy: PreTrainedModel, seconds: float, why: str) -> str:
    """Class, parameters, dtype, memory, time and attention of a loaded model, in one line.

    Args:
        policy: as it was loaded.
        seconds: that it took.
        why: of its attention; empty where it was configured.
    """
    sizes: Counter[str] = Counter()
    for parameter in policy.parameters():  # tied ones once
        sizes[str(parameter.dtype).removeprefix("torch.")] += parameter.numel() * parameter.element_size()
    attention = f"{policy.config._attn_implementation} attention" + (f" ({why})" if why else "")
    return (
        f"loaded: {type(policy).__name__}, {policy.num_parameters():,} parameters in"
        f" {' and '.join(name for name, _ in sizes.most_common())}, {_in_bytes(sizes.total())}"
        f" on {policy.device}, {attention}, in {seconds:.1f} s"
    )


def print_loaded(line: str, path: str, revision: str | None) -> None:
    """Print the line on the first rank, with the commit of a hub model and what pins it."""
    if not is_first_rank():
        return
    commit = commit_of(path, revision)
    pin = f"; model.revision={commit} pins it" if commit is not None and commit != revision else ""
    Console().print(f"{line}{pin}", soft_wrap=True, highlight=False, markup=False)


def _in_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
