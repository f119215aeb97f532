"""How long a row a model can read, where it looks positions up in a table that ends.

Rotary and ALiBi models compute a position and go on for ever; GPT-2, OPT and their like have a row of weights for each
and fail beyond the last: with an index error, or on a GPU by an assertion that ends the process. Which of the two a
model is follows from its forward pass, gone through here without content.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from transformers import PretrainedConfig, PreTrainedModel

from caldpo.models.attention_choice import EAGER, NEEDS_GPU

_LENGTHS = re.compile(r"(^|_)(positions?|position_embeddings|seq_len|sequence_length|ctx|context_length)$")
_META = torch.device("meta")
_aten = torch.ops.aten


def position_limit(model: PreTrainedModel, tokens: int) -> int | None:
    """Tokens of the longest row that ``model`` can read; None where it can read rows of ``tokens``.

    Args:
        model: without adapters; its weights are not looked at. In whatever mode and on any device, best on the meta
            device: of another a copy without content is made, where rows are longer than its configuration says.
        tokens: of the longest row that is going to be there.

    Returns:
        The length that the configuration names, if the model reads rows of it and none of ``tokens``. A model that
        cannot be gone through without content is not judged: None.
    """
    named = sorted((length for length in _lengths(model.config) if length < tokens), reverse=True)
    probed = _without_weights(model) if named else None
    if probed is None or _reads(probed, tokens):
        return None
    return next((length for length in named if _reads(probed, length)), None)


def _without_weights(model: PreTrainedModel) -> PreTrainedModel | None:
    if model.device == _META:
        return model
    try:
        with torch.device(_META):
            return type(model)(copy.deepcopy(model.config))
    except Exception:  # a model of unknown make; whether its rows are too long is then for itself to say
        return None


def _lengths(config: PretrainedConfig) -> Iterator[int]:
    """Every number of the configuration whose name says that it is a length, under all the names it has."""
    text = config.get_text_config()
    for name in filter(_LENGTHS.search, {*text.to_dict(), *getattr(text, "attribute_map", {})}):
        value = getattr(text, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield value


def _reads(model: PreTrainedModel, tokens: int) -> bool:
    before, training = model.config._attn_implementation, model.training
    try:
        if before in NEEDS_GPU:
            model.set_attn_implementation(EAGER)
        model.eval()
        with torch.no_grad(), OnlyIntegers():
            row = torch.zeros(1, tokens, dtype=torch.int64)
            model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
    except Exception:  # an index beyond a table, or shapes that no longer go together; or a model of unknown make
        return False
    finally:
        model.train(training)
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
    return True


class OnlyIntegers(TorchDispatchMode):
    """While it is entered, integers and truth values are computed, and floating-point numbers have only shapes.

    So a model on the meta device finds its positions, and a look-up of one of them beyond the end of a table of
    weights raises what it would raise with weights.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        unknown = any(t.is_meta for t in tensors)
        if unknown or kwargs.get("device") == _META:
            _require_inside(func, args)
            shapes = func(*_mapped(args, _without_content), **_mapped(kwargs, _without_content))
            if not isinstance(shapes, Tensor) or shapes.is_floating_point() or (unknown and not _takes_shape(func)):
                return shapes
            kwargs = {**kwargs, "device": torch.device("cpu")}
            return func(*_mapped(args, _with_some_content), **kwargs)
        found = func(*args, **kwargs)
        return _mapped(found, lambda t: _without_content(t) if t.is_floating_point() and t.dim() else t)


def _takes_shape(func: Any) -> bool:
    """Whether of its tensor an operation takes the shape, and no values."""
    name = func.overloadpacket.__name__
    return name.startswith("new_") or name.endswith("_like")


def _require_inside(func: Any, args: tuple[Any, ...]) -> None:
    """Raise where an index that is known lies beyond the table that it is looked up in."""
    if func is _aten.embedding.default:
        looked_up = [(0, args[1])]
    elif func in (_aten.index_select.default, _aten.gather.default):
        looked_up = [(args[1], args[2])]
    elif func is _aten.index.Tensor:
        looked_up = list(enumerate(args[1]))
    else:
        return
    for dimension, index in looked_up:
        if index is None or index.is_meta or index.dtype == torch.bool or not index.numel():
            continue
        rows = args[0].shape[dimension]
        if not -rows <= int(index.min()) <= int(index.max()) < rows:
            raise IndexError(f"index {int(index.max())} of a table of {rows} rows")


def _mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return tree_map_only(Tensor, function, tree)


def _without_content(tensor: Tensor) -> Tensor:
    return (
        tensor
        if tensor.is_meta
        else torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)
    )


def _with_some_content(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu") if tensor.is_meta else tensor
