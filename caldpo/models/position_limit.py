"""Find the longest row that a model can read, where it has a table of learned positions.

Rotary and ALiBi models compute positions of any size; GPT-2, OPT and similar models have a row of weights for each and
fail beyond the last: with an index error, or on a GPU by an assertion that ends the process. Which of the two a model
is shows in its forward pass, run here on the meta device.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from transformers import PretrainedConfig, PreTrainedModel

from caldpo.models.architecture import EAGER, NEEDS_GPU

_LENGTHS = re.compile(r"(^|_)(positions?|position_embeddings|seq_len|sequence_length|ctx|context_length)$")
_META = torch.device("meta")
_aten = torch.ops.aten


def position_limit(model: PreTrainedModel, tokens: int) -> int | None:
    """Find the longest row, in tokens, that ``model`` can read; None where it can read rows of ``tokens``.

    Args:
        model: without adapters; its weights are not read. In any mode and on any device, preferably on the meta device:
            of another a copy is made there, where rows are longer than its configuration names.
        tokens: of the longest row of the data.

    Returns:
        The length that the configuration names, if the model reads rows of it and none of ``tokens``. None, too, for a
        model that cannot run on the meta device.
    """
    named = sorted((length for length in _lengths(model.config) if length < tokens), reverse=True)
    probed = _on_meta(model) if named else None
    if probed is None or _reads(probed, tokens):
        return None
    return next((length for length in named if _reads(probed, length)), None)


def _on_meta(model: PreTrainedModel) -> PreTrainedModel | None:
    if model.device == _META:
        return model
    try:
        with torch.device(_META):
            return type(model)(copy.deepcopy(model.config))
    except Exception:  # of the model's own code; a row that is too long then fails in training
        return None


def _lengths(config: PretrainedConfig) -> Iterator[int]:
    """Yield the numbers of the configuration whose name is that of a length, under all names they have."""
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
    except Exception:  # an index beyond a table, or shapes that do not match; or any error of the model's own code
        return False
    finally:
        model.train(training)
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
    return True


class OnlyIntegers(TorchDispatchMode):
    """Compute integers and booleans, and of floating-point tensors only shapes, while active.

    So a model on the meta device computes its positions, and a look-up beyond the end of a table of weights raises the
    error that it would raise with weights.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        unknown = any(t.is_meta for t in tensors)
        if unknown or kwargs.get("device") == _META:
            _require_within(func, args)
            meta_args, meta_kwargs = tree_map_only(Tensor, _to_meta, (args, kwargs))
            shapes = func(*meta_args, **meta_kwargs)
            name = func.overloadpacket.__name__
            reads_values = not (name.startswith("new_") or name.endswith("_like"))
            if not isinstance(shapes, Tensor) or shapes.is_floating_point() or (unknown and reads_values):
                return shapes
            return func(*tree_map_only(Tensor, _uninitialized, args), **{**kwargs, "device": torch.device("cpu")})
        result = func(*args, **kwargs)
        return tree_map_only(Tensor, lambda t: _to_meta(t) if t.is_floating_point() and t.dim() else t, result)


def _require_within(func: Any, args: tuple[Any, ...]) -> None:
    """Raise where a known index is beyond the end of the table that it is looked up in."""
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


def _to_meta(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)


def _uninitialized(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu") if tensor.is_meta else tensor
