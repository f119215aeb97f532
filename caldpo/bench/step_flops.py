"""Floating-point operations that a DPO step needs: nothing for padding, recomputation or the reference.

Every distinct position passes the body once: the prompt once for both responses, and of a response all tokens but
the last, which predicts nothing. A position attends to itself and to what comes before it. The head is needed
where a response token is predicted. A product of ``[m, k]`` and ``[k, n]`` counts ``2 m k n``; what is not a matrix
product counts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

# Of a product y = W x: the forward pass; then the gradients of x and of W, each as dear.
FORWARD_AND_BACKWARD = 3
FROZEN = 2  # no gradient of W


@dataclass(frozen=True)
class ModelSize:
    """What determines a model's cost.

    Args:
        body: elements of the blocks' matrices, each used once per position.
        head: elements of the output head.
        attention: layers x heads x head dimension.
        adapters: elements of trainable low-rank matrices beside a frozen body; None: the body is trained itself.
    """

    body: int
    head: int
    attention: int
    adapters: int | None = None

    @staticmethod
    def of(model_folder: str, lora_rank: int | None = None) -> ModelSize:
        """The sizes of a saved model; its weights are not loaded."""
        config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        head = model.get_output_embeddings()
        matrices = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
        dimension = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        ranked = None if lora_rank is None else sum(lora_rank * sum(m.weight.shape) for m in matrices)
        return ModelSize(
            body=sum(m.weight.numel() for m in matrices),
            head=head.weight.numel(),
            attention=config.num_hidden_layers * config.num_attention_heads * dimension,
            adapters=ranked,
        )


def step_flops(size: ModelSize, prompt: int, chosen: int, rejected: int) -> int:
    """Operations of one pair's forward and backward pass.

    Args:
        size: of the model.
        prompt, chosen, rejected: lengths, tokens; each at least 1.
    """
    positions = prompt + (chosen - 1) + (rejected - 1)
    attended = _triangle(prompt) + sum((n - 1) * prompt + _triangle(n - 1) for n in (chosen, rejected))
    attention = 2 * 2 * size.attention * attended  # queries with keys, weights with values
    body, head = 2 * size.body * positions, 2 * size.head * (chosen + rejected)
    if size.adapters is None:
        return FORWARD_AND_BACKWARD * (body + attention + head)
    adapters = 2 * size.adapters * positions
    return FROZEN * (body + head) + FORWARD_AND_BACKWARD * (attention + adapters)


def _triangle(n: int) -> int:
    """Pairs of positions among ``n`` of which the second is not after the first."""
    return n * (n + 1) // 2
