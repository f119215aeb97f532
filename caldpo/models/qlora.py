"""QLoRA: low-rank updates on a frozen base whose matrices are kept in 4 or 8 bits by bitsandbytes (extra ``qlora``).

Dettmers et al. 2023. Matrices are quantised one by one after loading, whatever their source (a folder, the hub, random
weights, a base with an earlier adapter merged into it): the full base is in memory once, on the device that it was
loaded to, and the quantised one grows as it shrinks. Policy and reference share the quantised base.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from caldpo.config.extras import require_package
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.models.adapters import AdapterSource, Lora
from caldpo.models.model_source import ModelSource, WrappedSource, floating_dtype

BLOCK, NESTED = 64, 256  # weights with one scale, and scales with one second-level scale: bitsandbytes' defaults
Bits = Literal[4, 8]


@validated
@dataclass
class QLora(Lora):
    """``adapter=qlora``: LoRA on a base that is quantised to 4 or 8 bits; the other arguments are LoRA's.

    Args:
        bits: of a weight of the base's matrices; embeddings, norms, biases and the output head stay as they are.
        quant_type: of 4 bits: the 16 levels.
        double_quant: of 4 bits: quantise the blocks' scales to 8 bits, too.
        compute_dtype: of 4 bits: dtype that matrices are dequantised to for products; ``same`` is the model's dtype.
    """

    kind, option = "QLoRA", "qlora"

    bits: Bits = 4
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True
    compute_dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"

    def check(self) -> None:
        require_package("bitsandbytes", "adapter", self.option)
        super().check()

    def base(self, source: ModelSource) -> ModelSource:
        # after an earlier adapter was merged into the matrices
        return QuantizedSource(super().base(source), self)


class QuantizedSource(WrappedSource):
    """A model source whose matrices are quantised after loading."""

    def __init__(self, source: ModelSource, adapter: QLora) -> None:
        super().__init__(source)
        self.adapter = adapter

    def load_policy(self) -> PreTrainedModel:
        self.adapter.check()
        return quantize(self.source.load_policy(), self.adapter)

    def skeleton(self) -> PreTrainedModel:
        model = self.source.skeleton()
        for parent, name, layer in _matrices(model):
            setattr(parent, name, SkeletonLinear(layer, self.adapter.bits, double_quant=self.adapter.double_quant))
        return model.requires_grad_(False)

    def identity(self) -> str:
        adapter = self.adapter
        four = f"4 bits ({adapter.quant_type}{', double' if adapter.double_quant else ''})"
        return f"{self.source.identity()} in {'8 bits' if adapter.bits == 8 else four}"


class SkeletonLinear(nn.Linear):
    """Stands in for a quantised matrix where memory is counted: its bytes, and those of the dequantised copy."""

    def __init__(self, layer: nn.Linear | Conv1D, bits: Bits, *, double_quant: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = _features(layer)
        count, like = self.in_features * self.out_features, layer.weight
        stored = (self.out_features, self.in_features) if bits == 8 else ((count + 1) // 2, 1)
        kind = torch.int8 if bits == 8 else torch.uint8
        self.weight = nn.Parameter(torch.empty(stored, dtype=kind, device=like.device), requires_grad=False)
        blocks = -(-count // BLOCK)
        scales = 4 * blocks
        if bits == 8:
            scales = 4 * self.out_features
        elif double_quant:
            scales = blocks + 4 * -(-blocks // NESTED)
        self.register_buffer("scales", torch.empty(scales, dtype=torch.uint8, device=like.device))
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:
        dequantized_weight = input.new_zeros(self.out_features, self.in_features)
        return nn.functional.linear(input, dequantized_weight, self.bias)


@functools.cache
def _linear_8bit() -> Any:
    """Make the class of 8-bit layers that compute the same in training and evaluation mode."""
    import bitsandbytes

    class Linear8bit(bitsandbytes.nn.Linear8bitLt):
        """On CPUs bitsandbytes rounds inputs only in evaluation mode: policy and reference would differ by mode."""

        def train(self, mode: bool = True) -> Linear8bit:
            """Stay in training mode, in which a CPU rounds nothing but the matrix; on a GPU both modes are the same."""
            super().train(True)
            return self

    return Linear8bit


def quantize(model: PreTrainedModel, adapter: QLora) -> PreTrainedModel:
    """Quantise the model's matrices in place, all but the output head, and freeze it.

    The layers are bitsandbytes' own. On CPUs with AVX-512 they would repack their weights for evaluation, with
    scales of fewer bits: policy and reference would then differ by mode. That is disabled.
    """
    import bitsandbytes

    _require_full_blocks(model, adapter.bits)
    dtype = model.dtype if adapter.compute_dtype == "same" else floating_dtype(adapter.compute_dtype)
    for parent, name, layer in _matrices(model):
        weight = layer.weight.detach()
        matrix = weight.T.contiguous() if isinstance(layer, Conv1D) else weight
        inputs, outputs = _features(layer)
        quantized: Any
        if adapter.bits == 4:
            quantized = bitsandbytes.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=dtype, device="meta")
            quantized.weight = bitsandbytes.nn.Params4bit(
                matrix, False, compress_statistics=adapter.double_quant, quant_type=adapter.quant_type, module=quantized
            )
            quantized.support_avx512bf16_for_cpu = False
        else:
            quantized = _linear_8bit()(inputs, outputs, bias=False, has_fp16_weights=False, device="meta")
            quantized.weight = bitsandbytes.nn.Int8Params(matrix, has_fp16_weights=False, requires_grad=False)
        quantized.bias = layer.bias
        quantized.train(layer.training)
        quantized.transposed = isinstance(layer, Conv1D)
        quantized.register_load_state_dict_pre_hook(_ignore_stored_scales)
        setattr(parent, name, quantized.to(weight.device))  # rounds
    if adapter.bits == 8:  # a warning for each layer and batch
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    flag: Any = model
    flag.is_loaded_in_4bit, flag.is_loaded_in_8bit = adapter.bits == 4, adapter.bits == 8  # PEFT asks
    return model.requires_grad_(False)


def dequantized(layer: Any) -> Tensor:
    """Dequantise the matrix of a layer to float32, shape ``(outputs, inputs)``."""
    import bitsandbytes

    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        weight: Any = layer.weight
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return layer.weight.data.float() * scales.float()[:, None] / 127


def is_quantized(layer: nn.Module) -> bool:
    """Whether the layer is a quantised matrix of bitsandbytes."""
    return type(layer).__name__ in ("Linear4bit", "Linear8bit")


def check_quantized(adapter: AdapterSource, *, sharded: bool) -> None:
    """Refuse to shard a quantised base over ranks: its scales are no parameters that a strategy could shard."""
    if sharded and isinstance(adapter, QLora):
        raise CaldpoError(
            "a quantised base cannot be sharded over devices",
            key="adapter",
            value="qlora",
            remedy="set trainer.strategy=ddp, where each device holds the base; or use adapter=lora",
        )


def _require_full_blocks(model: PreTrainedModel, bits: Bits) -> None:
    """Refuse 4 bits on a CPU where a row is not a multiple of a block: its kernels silently apply wrong scales."""
    partial = [_features(layer)[0] for _, _, layer in _matrices(model) if _features(layer)[0] % BLOCK]
    if bits == 4 and partial and model.device.type == "cpu" and not torch.cuda.is_available():
        raise CaldpoError(
            f"bitsandbytes on a CPU cannot dequantise a matrix whose inputs ({partial[0]}) are no multiple of {BLOCK}",
            key="adapter.bits",
            value=bits,
            remedy="set adapter.bits=8 or adapter=lora",
        )


def _ignore_stored_scales(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Keep a frozen matrix's own scales when a state is loaded, since they are not tensors that PyTorch loads."""
    for name in [n for n in state if n.startswith((f"{prefix}weight.", f"{prefix}SCB", f"{prefix}weight_format"))]:
        del state[name]


def _matrices(model: PreTrainedModel) -> list[tuple[nn.Module, str, Any]]:
    """List parent, name and layer of each linear layer but the output head."""
    head = model.get_output_embeddings()
    return [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer) in (nn.Linear, Conv1D) and layer is not head
    ]


def _features(layer: Any) -> tuple[int, int]:
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else (layer.nx, layer.nf)
