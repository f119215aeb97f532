"""QLoRA: low-rank updates on a frozen base whose matrices are kept in 4 or 8 bits by bitsandbytes (extra ``qlora``).

Dettmers et al. 2023. Matrices are rounded one by one after loading, whatever source they come from (a folder, the hub,
random weights, a base with an earlier adapter merged into it): the whole base is in memory once, on the device that
it was loaded to, and the rounded one grows as it shrinks. Policy and reference share the rounded base.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from caldpo.config.bounds import NonNegativeInt, PositiveInt, Rate
from caldpo.config.hydra_errors import install
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.models.adapters import AdapterSource, Lora
from caldpo.models.model_source import ModelSource, floating_dtype

BLOCK, NESTED = 64, 256  # weights that share a scale, and scales that share one of their own: bitsandbytes' defaults
Bits = Literal[4, 8]


class QLora(Lora):
    """``adapter=qlora``: LoRA on a base that is rounded to 4 or 8 bits; the arguments that are not here are LoRA's.

    Args:
        bits: of a weight of the base's matrices; embeddings, norms, biases and the output head are left alone.
        quant_type: of 4 bits: where the 16 levels lie.
        double_quant: of 4 bits: the blocks' scales are rounded to 8 bits, too.
        compute_dtype: of 4 bits: what matrices are widened to where they are multiplied; ``same`` is the model's dtype.
    """

    kind, option = "QLoRA", "qlora"

    @validated
    def __init__(
        self,
        rank: PositiveInt = 16,
        alpha: PositiveInt = 32,
        dropout: Rate = 0.0,
        target_modules: str | list[str] = "all-linear",
        seed: NonNegativeInt = 0,
        init_from: str | None = None,
        init_mode: Literal["merged", "reference"] = "merged",
        bits: Bits = 4,
        quant_type: Literal["nf4", "fp4"] = "nf4",
        double_quant: bool = True,
        compute_dtype: Literal["same", "float32", "bfloat16", "float16"] = "same",
    ) -> None:
        super().__init__(rank, alpha, dropout, target_modules, seed, init_from, init_mode)
        self.bits, self.quant_type, self.double_quant, self.compute_dtype = (
            bits,
            quant_type,
            double_quant,
            compute_dtype,
        )

    def check(self) -> None:
        """Look whether PEFT and bitsandbytes are installed, and the earlier adapter there.

        Raises:
            CaldpoError: one of them is not.
        """
        if importlib.util.find_spec("bitsandbytes") is None:
            remedy = install("adapter", self.option)
            raise CaldpoError("bitsandbytes is not installed", key="adapter", value=self.option, remedy=remedy)
        super().check()

    def base(self, source: ModelSource) -> ModelSource:
        """The source with its matrices rounded, after an earlier adapter (if any) was merged into them."""
        return QuantizedSource(super().base(source), self)


class QuantizedSource:
    """A model source whose matrices are rounded after loading."""

    def __init__(self, source: ModelSource, how: QLora) -> None:
        self.source, self.how = source, how

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.source.load_tokenizer()

    def load_policy(self) -> PreTrainedModel:
        """The model with its matrices rounded, frozen.

        Raises:
            CaldpoError: bitsandbytes is not installed, or the source's model cannot be had.
        """
        self.how.check()
        return quantize(self.source.load_policy(), self.how)

    def skeleton(self) -> PreTrainedModel:
        """The model with matrices of the same bytes and no meaning."""
        model = self.source.skeleton()
        for parent, name, layer in _matrices(model):
            setattr(parent, name, SkeletonLinear(layer, self.how.bits, double_quant=self.how.double_quant))
        return model.requires_grad_(False)

    def identity(self) -> str:
        how = self.how
        kind = "8 bits" if how.bits == 8 else f"4 bits ({how.quant_type}{', double' if how.double_quant else ''})"
        return f"{self.source.identity()} in {kind}"


class SkeletonLinear(nn.Linear):
    """Stands for a rounded matrix where memory is counted: its bytes, and those of the wide copy that is used."""

    def __init__(self, layer: nn.Linear | Conv1D, bits: Bits, *, double_quant: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = _features(layer)
        count, like = self.in_features * self.out_features, layer.weight
        stored = (self.out_features, self.in_features) if bits == 8 else ((count + 1) // 2, 1)
        kind = torch.int8 if bits == 8 else torch.uint8
        self.weight = nn.Parameter(torch.empty(stored, dtype=kind, device=like.device), requires_grad=False)
        blocks = -(-count // BLOCK)
        scales = (
            4 * self.out_features if bits == 8 else blocks + 4 * -(-blocks // NESTED) if double_quant else 4 * blocks
        )
        self.register_buffer("scales", torch.empty(scales, dtype=torch.uint8, device=like.device))
        self.bias = layer.bias
        self.wide = like.dtype

    def forward(self, input: Tensor) -> Tensor:
        wide = input.new_zeros(self.out_features, self.in_features)
        return nn.functional.linear(input, wide, self.bias)


def quantize(model: PreTrainedModel, how: QLora) -> PreTrainedModel:
    """Round the model's matrices in place, all but the output head, and freeze it.

    The layers are bitsandbytes' own. On CPUs with AVX-512 they would pack their weights anew for evaluation, with
    scales of fewer bits: policy and reference would then differ by the mode they are run in. That is switched off.
    """
    import bitsandbytes

    from caldpo.models.linear_8bit import Linear8bit

    _require_whole_blocks(model, how.bits)
    widened = model.dtype if how.compute_dtype == "same" else floating_dtype(how.compute_dtype)
    for parent, name, layer in _matrices(model):
        weight = layer.weight.detach()
        matrix = weight.T.contiguous() if isinstance(layer, Conv1D) else weight
        inputs, outputs = _features(layer)
        made: Any
        if how.bits == 4:
            made = bitsandbytes.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=widened, device="meta")
            made.weight = bitsandbytes.nn.Params4bit(
                matrix, False, compress_statistics=how.double_quant, quant_type=how.quant_type, module=made
            )
            made.support_avx512bf16_for_cpu = False
        else:
            made = Linear8bit(inputs, outputs, bias=False, has_fp16_weights=False, device="meta")
            made.weight = bitsandbytes.nn.Int8Params(matrix, has_fp16_weights=False, requires_grad=False)
        made.bias = layer.bias
        made.train(layer.training)
        made.transposed = isinstance(layer, Conv1D)
        made.register_load_state_dict_pre_hook(_leave_scales)
        setattr(parent, name, made.to(weight.device))  # rounds
    if how.bits == 8:  # said once for each layer and batch
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    flag: Any = model
    flag.is_loaded_in_4bit, flag.is_loaded_in_8bit = how.bits == 4, how.bits == 8  # PEFT asks
    return model.requires_grad_(False)


def widened(layer: Any) -> Tensor:
    """The matrix of a rounded layer in float32, shape ``(outputs, inputs)``."""
    import bitsandbytes

    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        weight: Any = layer.weight
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return layer.weight.data.float() * scales.float()[:, None] / 127


def is_quantized(layer: nn.Module) -> bool:
    """Whether the layer is a rounded matrix of bitsandbytes."""
    return type(layer).__name__ in ("Linear4bit", "Linear8bit")


def check_quantized(adapter: AdapterSource, *, sharded: bool) -> None:
    """Refuse a rounded base that would be sharded over ranks: its scales are no parameters that a strategy divides.

    Raises:
        CaldpoError: it would.
    """
    if sharded and isinstance(adapter, QLora):
        raise CaldpoError(
            "a base of few bits cannot be sharded over devices",
            key="adapter",
            value="qlora",
            remedy="set trainer.strategy=ddp: each device holds the small base; or take adapter=lora",
        )


def _require_whole_blocks(model: PreTrainedModel, bits: Bits) -> None:
    """Bitsandbytes' CPU kernels widen 4 bits with wrong scales, silently, where a row is no whole number of blocks."""
    narrow = [_features(layer)[0] for _, _, layer in _matrices(model) if _features(layer)[0] % BLOCK]
    if bits == 4 and narrow and model.device.type == "cpu" and not torch.cuda.is_available():
        raise CaldpoError(
            f"on a CPU bitsandbytes widens no matrix whose inputs ({narrow[0]}) are not a multiple of {BLOCK}",
            key="adapter.bits",
            value=bits,
            remedy="set adapter.bits=8 or adapter=lora",
        )


def _leave_scales(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A frozen matrix keeps its own scales: in a state they are no tensors that PyTorch's loading knows."""
    for name in [n for n in state if n.startswith((f"{prefix}weight.", f"{prefix}SCB", f"{prefix}weight_format"))]:
        del state[name]


def _matrices(model: PreTrainedModel) -> list[tuple[nn.Module, str, Any]]:
    """Parent, name and layer of every linear layer but the output head."""
    head = model.get_output_embeddings()
    return [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer) in (nn.Linear, Conv1D) and layer is not head
    ]


def _features(layer: Any) -> tuple[int, int]:
    """Inputs and outputs."""
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else (layer.nx, layer.nf)
