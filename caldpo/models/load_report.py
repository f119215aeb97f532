"""Progress bars, notes and errors of a model that loads.

transformers maps safetensors into memory and brings one tensor at a time into the requested dtype and onto the default
device, so that weights are never held twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from caldpo.errors import CaldpoError, one_line
from caldpo.models.hub_files import commit_of, no_safetensors_error
from caldpo.models.weight_files import StoredTensor
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.notes import print_notes
from caldpo.utils.stream_console import Console

BAR_DELAY = 2.0  # seconds of loading before a progress bar appears
_ROUTER_LOSS = re.compile(r"(aux|z|moe|balanc\w*)_loss_?\w*(coef|alpha|weight)|output_router_logits")
_ATTENTION = re.compile(r"flash.?att|flex.?att|attn_implementation|scaled_dot_product", re.IGNORECASE)
_MAX_KINDS = 4  # of tensors, in a line


@contextmanager
def delayed_progress_bars() -> Iterator[None]:
    """Show transformers' progress bars only where loading takes longer than :data:`BAR_DELAY`, and clear them after."""
    hook: Callable[..., Any] | None = getattr(logging, "set_tqdm_hook", None)
    if hook is None:  # they are then shown from the start
        yield
        return

    def delayed(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return factory(*args, **{"delay": BAR_DELAY, "leave": False, **options})

    before = hook(delayed)
    try:
        yield
    finally:
        hook(before)


def note_unused(names: Iterable[str], files: Mapping[str, StoredTensor], path: str) -> None:
    """Print which tensors of the files the model does not use; ``names`` are the model's."""
    unused = sorted(names)
    if not unused:
        return
    groups = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in unused)
    kinds = ", ".join(f"{name} ({count})" for name, count in groups.most_common(_MAX_KINDS))
    more = f" and {len(groups) - _MAX_KINDS} other kinds" if len(groups) > _MAX_KINDS else ""
    where = f" ({files[unused[0]].file})" if unused[0] in files else ""
    tensors = f"{len(unused):,} tensors of {path}{where}"
    reason = "have no place in the model that its config.json describes, and are left out"
    print_notes([f"{tensors} {reason}: {kinds}{more}"])


def note_router_loss(config: PretrainedConfig) -> None:
    """Print for a mixture of experts that the router loss of its configuration is not added in training."""
    enabled = dict(_router_losses(config.get_text_config().to_dict()))
    if not enabled:
        return
    named = ", ".join(f"{name}={'true' if value is True else f'{value:g}'}" for name, value in enabled.items())
    asked = f"its config.json asks for a load-balancing loss of the experts' router ({named}), which is not added"
    print_notes([f"{asked}: the loss uses only the pairs' log-probs (and the policy's output_router_logits is off)"])


def _router_losses(settings: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _router_losses(value)
        elif _ROUTER_LOSS.search(str(name)) and isinstance(value, int | float) and value > 0:
            yield str(name), value


def print_loaded(policy: PreTrainedModel, seconds: float, reason: str, path: str, revision: str | None) -> None:
    """Print what was loaded in one line, and the commit that pins a hub model; ``reason``: for its attention."""
    if not is_first_rank():
        return
    sizes: Counter[str] = Counter()
    for parameter in policy.parameters():  # tied ones once
        sizes[str(parameter.dtype).removeprefix("torch.")] += parameter.numel() * parameter.element_size()
    attention = f"{policy.config._attn_implementation} attention" + (f" ({reason})" if reason else "")
    commit = commit_of(path, revision)
    pin = f"; model.revision={commit} pins it" if commit is not None and commit != revision else ""
    Console().print(
        f"loaded: {type(policy).__name__}, {policy.num_parameters():,} parameters in"
        f" {' and '.join(name for name, _ in sizes.most_common())}, {sizes.total() / 2**20:,.1f} MiB"
        f" on {policy.device}, {attention}, in {seconds:.1f} s{pin}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def attention_error(attention: str, error: Exception) -> CaldpoError | None:
    """Explain that an attention implementation cannot be used; None where the error is about something else."""
    if _ATTENTION.search(str(error)) is None:
        return None
    package = ", or install the package flash-attn, built for this PyTorch and CUDA" if "flash" in attention else ""
    return CaldpoError(
        f"cannot be used here: {_first_sentence(error)}",
        key="model.attention",
        value=attention,
        remedy="set model.attention=sdpa, which on a GPU uses PyTorch's own FlashAttention kernels" + package,
    )


def _first_sentence(error: Exception) -> str:
    if not isinstance(error, OSError | ValueError | ImportError):
        return one_line(error)
    return one_line(error).partition(": ")[2] or type(error).__name__


def load_error(what: str, path: str, key: str, error: Exception) -> CaldpoError:
    """Explain an error of a library that loads ``what`` (a model or tokenizer) from ``path``."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().exists():
        return CaldpoError(f"there is no such folder to load a {what} from", key=key, value=path)
    if "safetensors" in str(error) and what == "model":
        return no_safetensors_error(path, key, f"it has no weights as safetensors: {_first_sentence(error)}")
    if not Path(path).is_dir():
        remedy = (
            "give the id of a causal language model on the hub (check the spelling, the network and, for a gated model,"
            " HF_TOKEN) or a folder written by save_pretrained"
        )
    elif what == "model":
        remedy = "correct its config.json, or name a folder that save_pretrained of transformers has written"
    else:
        remedy = (
            "save the model's tokenizer there, too (save_pretrained of transformers), or name one by"
            " model.tokenizer=ID_OR_FOLDER"
        )
    return CaldpoError(f"cannot load a {what}: {_first_sentence(error)}", key=key, value=path, remedy=remedy)
