"""A loss with its modifiers is one loss: to the training module, to checks and to the Python API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from caldpo.errors import CaldpoError
from caldpo.losses.base import PreferenceLoss
from caldpo.modifiers.loss_probes import beta_times
from caldpo.modifiers.modifier_base import (
    ORDER,
    AddedTerm,
    BetaScale,
    Modifier,
    PairWeight,
    ReferenceUpdate,
    Shift,
    StepObjective,
    TokenWeight,
)
from caldpo.types import LossOutput, PairBatch, PairLogps, StepStatistics

Kind = TypeVar("Kind", bound=Modifier)


def modified(loss: PreferenceLoss, modifiers: Mapping[str, Modifier | None] | None = None) -> PreferenceLoss:
    """Modify a loss; without modifiers it is the loss itself.

    Args:
        loss: of pairs.
        modifiers: by name, in any order.

    Raises:
        CaldpoError: the loss cannot be modified so, or modifiers exclude each other.
    """
    chosen = [modifier for modifier in (modifiers or {}).values() if modifier is not None]
    return ModifiedLoss(loss, chosen) if chosen else loss


class ModifiedLoss(PreferenceLoss):
    """Computes a loss with modifiers, each at its place; see :mod:`caldpo.modifiers.modifier_base`."""

    def __init__(self, loss: PreferenceLoss, modifiers: list[Modifier]) -> None:
        super().__init__()
        kinds = [next(place for place, kind in enumerate(ORDER) if isinstance(m, kind)) for m in modifiers]
        ordered = [m for _, _, m in sorted(zip(kinds, (m.name for m in modifiers), modifiers, strict=True))]
        for modifier in ordered:
            modifier.check(loss)
        self.loss = loss
        self.modifiers = nn.ModuleDict({modifier.name: modifier for modifier in ordered})
        # in lists, also where there is one at most: attributes would be registered twice, and saved twice
        self._token_weights = _one([m for m in ordered if isinstance(m, TokenWeight)])
        self._betas = _one([m for m in ordered if isinstance(m, BetaScale)])
        self._objectives = _one([m for m in ordered if isinstance(m, StepObjective)])
        self._shifts = [m for m in ordered if isinstance(m, Shift)]
        self._pair_weights = [m for m in ordered if isinstance(m, PairWeight)]
        self._added = [m for m in ordered if isinstance(m, AddedTerm)]
        self._observers = [m for m in ordered if m.depends_on_batch]
        filters = [m for m in self._pair_weights if m.chooses_pairs]
        if filters and self._objectives:
            raise _exclusion([*filters, *self._objectives])
        moves = [m.move for m in _one([m for m in ordered if isinstance(m, ReferenceUpdate)])]
        self.reference_move = moves[0] if moves else None
        self.needs_reference, self.needs_rejected = loss.needs_reference, loss.needs_rejected
        self.needs_scores = loss.needs_scores or any(m.needs_scores for m in ordered)
        self.score_range, self.pairwise = loss.score_range, loss.pairwise
        self.takes_unpaired = loss.takes_unpaired and all(m.takes_unpaired for m in ordered)
        self.length_normalised, self.needs_mismatched = loss.length_normalised, loss.needs_mismatched
        self.depends_on_batch = loss.depends_on_batch or bool(self._observers)
        self.weighs_tokens = bool(self._token_weights)
        self.alignment = next((m.alignment for m in ordered if m.alignment), loss.alignment)

    @property
    def unmodified(self) -> PreferenceLoss:
        return self.loss

    @property
    def formula(self) -> str:
        """The loss with its numbers, what is around it, and in words what else changes."""
        formula, notes = self.loss.formula, []
        for modifier in self.modifiers.values():
            assert isinstance(modifier, Modifier)
            formula = modifier.formula(formula)
            notes += [modifier.note] if modifier.note else []
        return "; ".join([formula, *notes])

    @property
    def implicit_reward_beta(self) -> float | None:
        """That of the loss itself: the unit in which its modifiers count rewards as well."""
        return self.loss.implicit_reward_beta

    def implicit_rewards(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]] | None:
        return self.loss.implicit_rewards(logps)

    def weighed(self, batch: PairBatch, step: int) -> PairBatch:
        for modifier in self._token_weights:
            batch = batch.with_token_weights(modifier.weights(batch, step))
        return batch

    def observe(self, step: PairLogps, mismatched: PairLogps | None = None, *, training: bool = True) -> StepStatistics:
        per_pair: dict[str, Tensor] = {}
        state: dict[str, Tensor] = {}
        shifted = self._shifted(step)
        if self.loss.depends_on_batch:
            inner = self.loss.observe(shifted, mismatched, training=training)
            per_pair |= inner.per_pair
            state |= {f"loss.{name}": value for name, value in inner.state.items()}
        for modifier in self._observers:
            seen = replace(shifted, of_step=dict(per_pair))
            own = modifier.observe(seen, lambda logps: self._weighted(logps).loss, training=training)
            per_pair |= own.per_pair
            state |= {f"modifiers.{modifier.name}.{name}": value for name, value in own.state.items()}
        return StepStatistics(per_pair, state)

    def forward(self, logps: PairLogps) -> LossOutput:
        if self.depends_on_batch:
            logps = replace(logps, of_step=self.of_step(logps))
        logps = self._shifted(logps)
        output = self._weighted(logps)
        for objective in self._objectives:
            output = objective.objective(output, logps)
        for modifier in self._added:
            term = modifier.term(logps)
            output = LossOutput(output.loss + term, output.terms | {modifier.name: term}, output.diagnostics)
        return output

    def _shifted(self, logps: PairLogps) -> PairLogps:
        for modifier in self._shifts:
            logps = modifier.shifted(logps, self.loss)
        return logps

    def _weighted(self, logps: PairLogps) -> LossOutput:
        """Compute the loss with its beta scaled and its pairs weighed."""
        factors = {modifier.name: modifier.factors(logps) for modifier in self._betas}
        with ExitStack() as scaled:
            for factor in factors.values():
                scaled.enter_context(beta_times(self.loss, factor))
            output = self.loss(logps)
        loss, terms, diagnostics = output.loss, output.terms, output.diagnostics | factors
        for modifier in self._pair_weights:
            weight = modifier.weights(logps, self.loss)
            loss, terms = weight * loss, {name: weight * value for name, value in terms.items()}
            diagnostics = diagnostics | {f"{modifier.name}_weight": weight}
        return LossOutput(loss, terms, diagnostics)


def _one(found: list[Kind]) -> list[Kind]:
    """Refuse several modifiers of a kind of which a loss can have one."""
    if len(found) > 1:
        raise _exclusion(found)
    return found


def _exclusion(modifiers: Sequence[Modifier]) -> CaldpoError:
    names = [modifier.name for modifier in modifiers]
    return CaldpoError(
        f"{' and '.join(names)} decide on the same thing, and exclude each other",
        key="modifier",
        value=f"[{','.join(names)}]",
        remedy="choose one of them",
    )
