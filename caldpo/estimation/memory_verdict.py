"""Whether a run fits, and what to change where it does not."""

from __future__ import annotations

from dataclasses import dataclass

from caldpo.components import Components
from caldpo.estimation.memory_breakdown import (
    ACTIVATIONS,
    CASTS,
    EVALUATION,
    GRADIENTS,
    OPTIMIZER,
    REFERENCE,
    UPDATE,
    WORKING,
    Needs,
)
from caldpo.estimation.memory_capacity import GIB, Capacity

TIGHT = 0.9
"""Share of the memory above which a run may still fail: allocators lose some of it between blocks."""

WORTHWHILE = 0.03
"""Share of all that a change has to be about to be proposed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer.

    Args:
        fits: whether it does; None where that is not known.
        text: in a sentence.
        advice: what would make it smaller, the largest part first.
    """

    fits: bool | None
    text: str
    advice: tuple[str, ...]


def judge(needs: Needs, has: Capacity, components: Components, largest: int) -> Verdict:
    """Compare what is needed with what there is.

    Args:
        needs: of the run.
        has: memory of a device.
        components: of the run, for the advice.
        largest: pairs of the largest micro-batch.
    """
    total = f"{needs.total / GIB:,.2f} GiB"
    if has.bytes is None:
        known = "at least " if needs.unknown else "about "
        return Verdict(None, f"needs {known}{total}; what a device has is not known ({has.what})", ())
    room = f"{has.bytes / GIB:,.2f} GiB ({has.what})"
    ways = tuple(advice(needs, components, largest))
    if needs.total > has.bytes:
        return Verdict(False, f"does not fit: about {total} of {room}", ways)
    if needs.unknown:
        return Verdict(None, f"not known: at least {total} of {room}, without activations", ())
    if needs.total > TIGHT * has.bytes:
        return Verdict(
            True, f"tight: about {total} of {room}, and memory may fragment", tuple(advice(needs, components, largest))
        )
    return Verdict(True, f"fits: about {total} of {room}", ())


def advice(needs: Needs, components: Components, largest: int) -> list[str]:
    """What would make the largest parts smaller."""
    trainer, data, model = components.trainer, components.data, components.model
    found = needs.parts
    ways: dict[str, int] = {}
    per_batch = found[ACTIVATIONS] + found[WORKING]
    if largest > 1:
        if data.max_tokens_per_micro_batch is not None:
            smaller = f"data.max_tokens_per_micro_batch={-(-data.max_tokens_per_micro_batch // 2)}"
        else:
            smaller = f"data.micro_batch_size={-(-data.micro_batch_size // 2)}"
            smaller += f" trainer.accumulate_grad_batches={trainer.accumulate_grad_batches * 2}"
        ways[f"{smaller}: the same step in smaller pieces"] = per_batch
    if getattr(model, "gradient_checkpointing", None) is False:
        ways["model.gradient_checkpointing=true: activations are computed again in the backward pass"] = per_batch
    if per_batch > 0:
        ways["data.max_length and data.max_prompt_length lower: fewer tokens of the longest pairs"] = per_batch - 1
    if found[REFERENCE]:
        ways["reference=precomputed: no second copy of the weights while training"] = found[REFERENCE]
    if needs.trainable == needs.parameters:
        ways["adapter=lora: gradients and optimiser state of a small part of the weights"] = (
            found[GRADIENTS] + found[OPTIMIZER] + found[CASTS]
        )
    if found[OPTIMIZER] > found[GRADIENTS] * 1.5:
        ways["optim=rmsprop: one moment instead of two"] = found[OPTIMIZER] // 2
    if found[UPDATE]:
        ways["optim.foreach=false: weights are updated one by one"] = found[UPDATE]
    if found[EVALUATION]:
        ways["data.eval_micro_batch_size lower"] = found[EVALUATION]
    worthwhile = {text: size for text, size in ways.items() if size > WORTHWHILE * needs.total}
    return sorted(worthwhile, key=lambda text: -worthwhile[text])
