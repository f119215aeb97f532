"""Hidden states, heads and targets for tests of the head's arithmetic, and their naive computation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from caldpo.logprobs.lm_head_ops import LogitTransform

TOKENS, HIDDEN, VOCABULARY = 13, 5, 11
TRANSFORMS = {
    "identity": LogitTransform(),
    "scale": LogitTransform(scale=0.25),
    "cap": LogitTransform(cap=1.5),
    "both": LogitTransform(scale=1.75, cap=2.0),
}
# bytes of float64 logits: what one part may hold, so that parts are of 1 token, uneven (5, 4, 4), or all in one
ROW_BYTES = VOCABULARY * 8
PARTS = {"one token": ROW_BYTES, "uneven": 5 * ROW_BYTES + 3, "all": 100 * ROW_BYTES}
KEPT = {"none": 0, "some": 7 * ROW_BYTES, "all": 100 * ROW_BYTES}


@dataclass
class Head:
    """Leaves of a graph."""

    hidden: Tensor  # [tokens, hidden]
    weight: Tensor  # [vocab, hidden]
    bias: Tensor | None  # [vocab]
    targets: Tensor  # [tokens]

    @property
    def offset(self) -> Tensor:
        """The bias of a head that has one."""
        assert self.bias is not None
        return self.bias

    def leaves(self) -> list[Tensor]:
        """What takes a gradient."""
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None and x.requires_grad]

    def full(self, transform: LogitTransform) -> Tensor:
        """Log-probs of the targets by autograd's own full logits."""
        z = self.hidden.double() @ self.weight.double().T
        if self.bias is not None:
            z = z + self.bias.double()
        z = transform.scale * z
        if transform.cap is not None:
            z = transform.cap * torch.tanh(z / transform.cap)
        return torch.log_softmax(z, dim=-1).gather(1, self.targets[:, None]).squeeze(1)


def draw(
    *,
    bias: bool = True,
    frozen: bool = False,
    dtype: torch.dtype = torch.float64,
    size: float = 1.0,
    tokens: int = TOKENS,
    vocabulary: int = VOCABULARY,
    hidden: int = HIDDEN,
) -> Head:
    """A random head; ``size`` is about that of the logits, ``frozen`` takes the gradient of the head's weights."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    return Head(
        normal(tokens, hidden).requires_grad_(),
        normal(vocabulary, hidden, scale=size / hidden**0.5).requires_grad_(not frozen),
        normal(vocabulary, scale=0.5).requires_grad_(not frozen) if bias else None,
        torch.randint(vocabulary, (tokens,), generator=generator),
    )
