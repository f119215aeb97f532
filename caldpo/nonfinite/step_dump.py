"""Dump a non-finite step's batch for replay, and read it back.

``nonfinite_batches/step-N.json`` in the run's folder, or ``step-N-rank-R.json`` with that rank's share: token ids and
origin of each pair, and its log-probs, loss and terms as the run computed them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from caldpo.checkpointing.manifest import FOLDER as CHECKPOINTS
from caldpo.checkpointing.manifest import WEIGHT_PARTS, WEIGHTS, checkpoint_folders
from caldpo.errors import CaldpoError
from caldpo.nonfinite.locate import LOGPS, SeenBatch
from caldpo.types import PairBatch
from caldpo.utils.atomic_io import write_text

FOLDER = "nonfinite_batches"
OF_STEP = "of_step/"  # before the names of what the loss computed over all pairs of the step


def _printable(text: Any) -> Any:
    """Replace lone surrogates, which names of files can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_printable)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class PlainFacts(BaseModel):
    """The content of a JSON file, in which NaN and infinities are text."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class DumpedPair(PlainFacts):
    """A pair of the step, with the values that the run computed."""

    origin: Text  # file and line, or split and row
    index: Annotated[int, Field(ge=0, lt=2**63)]  # row in its split
    is_real: bool  # False for filler that evens out ranks
    prompt_ids: TokenIds
    chosen_ids: TokenIds
    rejected_ids: TokenIds
    scores: tuple[Finite, Finite] | None  # true rewards of chosen and rejected, where the data has them
    label: bool | None = None  # of an unpaired row
    values: dict[str, float]  # by name: log-probs in nats, loss, terms/*, diagnostics/* and of_step/*

    def of_step(self) -> dict[str, float]:
        """What the loss had computed over all pairs of the step, by name."""
        return {name.removeprefix(OF_STEP): value for name, value in self.values.items() if name.startswith(OF_STEP)}


class StepDump(PlainFacts):
    """A rank's share of an optimiser step."""

    format: Literal["caldpo nonfinite batch 2"] = "caldpo nonfinite batch 2"
    step: Annotated[int, Field(ge=0, lt=2**63)]  # optimiser steps before this one
    rank: NonNegativeInt
    ranks: PositiveInt
    reason: Text  # why it was dumped, for people, as are the next two
    loss: Text
    formula: Text
    layout: Literal["packed", "padded"]
    micro_batches: list[PositiveInt]  # pairs of each
    gradient_scale: Annotated[Finite, Field(gt=0)] = 1.0  # of float16 arithmetic
    step_pairs: Annotated[int, Field(gt=0, lt=2**63)]  # real ones, over ranks and accumulation
    checkpoint: Annotated[str, Field(pattern=r"\Acheckpoints/step-[0-9]+\z")] | None  # the last one before the step
    pairs: Annotated[list[DumpedPair], Field(min_length=1)]  # in the order of the micro-batches

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        first = self.pairs[0]
        if not (
            self.rank < self.ranks
            and sum(self.micro_batches) == len(self.pairs)
            and all("loss" in pair.values for pair in self.pairs)
            and all((pair.scores is None) == (first.scores is None) for pair in self.pairs)
            and all((pair.label is None) == (first.label is None) for pair in self.pairs)
        ):
            raise ValueError("its parts do not fit each other")
        return self


def dump_step(
    run_dir: Path,
    step: int,
    seen: Sequence[SeenBatch],
    *,
    origin: Callable[[int, str], str] = lambda row, split: f"pair {row}",
    **facts: Any,
) -> Path:
    """Write this rank's share of a step.

    Args:
        run_dir: the run's folder.
        step: optimiser steps before this one.
        seen: its micro-batches, one at least.
        origin: describes where a pair comes from, by its row and split.
        facts: further fields of :class:`StepDump`.

    Raises:
        OSError: it cannot be written.
    """
    first = seen[0].batch
    dump = StepDump(
        step=step,
        layout="packed" if first.spans is not None else "padded",
        micro_batches=[one.batch.pairs for one in seen],
        step_pairs=first.pairs_in_step(len(seen) * facts["ranks"]),
        checkpoint=last_checkpoint(run_dir, step),
        pairs=[pair for one in seen for pair in _dumped_pairs(one, origin)],
        **facts,
    )
    name = f"step-{step}.json" if dump.ranks == 1 else f"step-{step}-rank-{dump.rank}.json"
    path = run_dir / FOLDER / name
    path.parent.mkdir(exist_ok=True)
    write_text(path, dump.model_dump_json() + "\n")
    return path


def read_dump(path: Path) -> StepDump:
    """Read a step's batch.

    Raises:
        CaldpoError: the file is missing, damaged, or no dump.
    """
    try:
        return StepDump.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        reason = "there is no such file"
    except OSError as error:
        reason = f"it cannot be read: {error.strerror or error}"
    except ValueError as error:
        detail = " ".join(str(error).split())[:300]
        reason = f"it is damaged, or no batch that this version of caldpo has written ({detail})"
    raise CaldpoError(
        reason, key="replay", value=path, remedy=f"name a file of {FOLDER}/ in a run's folder, as the run wrote it"
    )


def last_checkpoint(run_dir: Path, step: int) -> str | None:
    """Find the latest checkpoint from before ``step``'s update, relative to the run's folder."""
    steps = [
        step_before
        for step_before, folder in checkpoint_folders(run_dir).items()
        if step_before <= step and ((folder / WEIGHTS).is_file() or (folder / WEIGHT_PARTS).is_dir())
    ]
    return f"{CHECKPOINTS}/step-{steps[-1]}" if steps else None


def _dumped_pairs(seen: SeenBatch, origin: Callable[[int, str], str]) -> list[DumpedPair]:
    batch = seen.batch
    logps = {name: getattr(seen.logps, name) for name in LOGPS}
    of_step = {f"{OF_STEP}{name}": value for name, value in (seen.logps.of_step or {}).items()}
    values = {name: value.tolist() for name, value in (logps | of_step | seen.values).items() if value is not None}
    scores: list[Any] = [None] * batch.pairs
    if batch.score_chosen is not None and batch.score_rejected is not None:
        scores = list(zip(batch.score_chosen.tolist(), batch.score_rejected.tolist(), strict=True))
    labels: list[bool | None] = [None] * batch.pairs
    if batch.chosen_present is not None:
        labels = [present > 0 for present in batch.chosen_present.tolist()]
    rows = zip(batch.index.tolist(), batch.weight.tolist(), sequences_of(batch), scores, labels, strict=True)
    return [
        DumpedPair(
            origin=origin(index, batch.split),
            index=index,
            is_real=weight > 0,
            prompt_ids=prompt,
            chosen_ids=chosen,
            rejected_ids=rejected,
            scores=pair_scores,
            label=label,
            values={name: column[i] for name, column in values.items()},
        )
        for i, (index, weight, (prompt, chosen, rejected), pair_scores, label) in enumerate(rows)
    ]


def sequences_of(batch: PairBatch) -> list[tuple[list[int], list[int], list[int]]]:
    """Split a batch into prompt, chosen and rejected token ids of each pair, filler included."""
    ids, positions = batch.input_ids.flatten().tolist(), batch.position_ids.flatten().tolist()
    targets, predicts = batch.targets.tolist(), batch.predicts.tolist()
    chosen, rejected = batch.response_lengths.view(2, -1).tolist()
    sequences, start = [], 0
    for middle_length, end_length in zip(chosen, rejected, strict=True):
        prompt_end = predicts[start]  # the last token of the prompt predicts the first one of the chosen response
        middle, end = start + middle_length, start + middle_length + end_length
        prompt = ids[prompt_end - positions[prompt_end] : prompt_end + 1]
        sequences.append((prompt, targets[start:middle], targets[middle:end]))
        start = end
    return sequences
