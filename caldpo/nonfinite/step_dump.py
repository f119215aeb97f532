"""Dump a non-finite step's batch for replay, and read it back: token ids, log-probs and their origins, no code.

``nonfinite_batches/step-N.safetensors`` in the run's folder, one for each rank where there are several. Tensors:
``tokens`` (all sequences concatenated) and ``ends`` (where each prompt, chosen and rejected response ends), and per
pair ``index``, ``weight``, ``scores`` where the data has them, log-probs (nats), loss and terms. The metadata holds
everything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from caldpo.checkpointing.manifest import FOLDER as CHECKPOINTS
from caldpo.checkpointing.manifest import WEIGHT_PARTS, WEIGHTS, checkpoint_folders
from caldpo.data.pair import TokenizedPair
from caldpo.errors import CaldpoError
from caldpo.nonfinite.locate import LOGPS, SeenBatch
from caldpo.types import PairBatch
from caldpo.utils.atomic_io import atomic_file

FOLDER = "nonfinite_batches"
FORMAT: Literal["caldpo bad batch 1"] = "caldpo bad batch 1"
_INTEGERS, _FLOATS = (torch.int32, torch.int64), (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class DumpHeader(BaseModel):
    """Facts of a dumped step.

    Args:
        step: optimiser steps before this one.
        rank, ranks: whose share of the step it is, and how many ranks there were.
        reason: why it was dumped, for people.
        loss, formula: of the run, for people.
        layout: of the batches.
        micro_batches: pairs of each.
        gradient_scale: of float16 arithmetic; 1 where there is none.
        step_pairs: real pairs of the step, over ranks and accumulation.
        origins: where each pair comes from.
        checkpoint: the last one before the step, relative to the run's folder.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal["caldpo bad batch 1"] = FORMAT
    step: Annotated[int, Field(ge=0, lt=2**63)]
    rank: Annotated[int, Field(ge=0)]
    ranks: Annotated[int, Field(lt=2**31)]
    reason: str
    loss: str
    formula: str
    layout: Literal["packed", "padded"]
    micro_batches: list[PositiveInt]
    gradient_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    step_pairs: Annotated[int, Field(gt=0, lt=2**63)]
    origins: list[str]
    checkpoint: Annotated[str, Field(pattern=r"\Acheckpoints/step-[0-9]+\z")] | None


@dataclass(frozen=True)
class Dump:
    """A step's batch, read back.

    Args:
        header: facts of the step.
        pairs: in the order of the micro-batches, with their origins.
        weight: 1 for a real pair, 0 for padding.
        values: per pair, by name: log-probs as in :class:`PairLogps`, ``loss`` and ``terms/*``.
    """

    header: DumpHeader
    pairs: list[TokenizedPair]
    weight: list[float]
    values: dict[str, Tensor]


def dump_step(
    run_dir: Path,
    step: int,
    seen: Sequence[SeenBatch],
    *,
    reason: str,
    rank: int,
    ranks: int,
    loss: str,
    formula: str,
    origin: Callable[[int, str], str] = lambda row, split: f"pair {row}",
    gradient_scale: float = 1.0,
) -> Path:
    """Write this rank's share of a step.

    Args:
        run_dir: the run's folder.
        step: optimiser steps before this one.
        seen: its micro-batches, one at least.
        reason: why it is dumped, for people.
        rank, ranks: this rank, and how many there are.
        loss, formula: of the run, for people.
        origin: describes where a pair comes from, by its row and split.
        gradient_scale: of float16 arithmetic.

    Raises:
        OSError: it cannot be written.
    """
    pairs = [pair for one in seen for pair in pairs_of(one.batch)]
    ends = [0]
    for prompt, chosen, rejected in pairs:
        for ids in (prompt, chosen, rejected):
            ends.append(ends[-1] + len(ids))
    tensors = {
        "tokens": torch.tensor([t for pair in pairs for ids in pair for t in ids], dtype=torch.int32),
        "ends": torch.tensor(ends, dtype=torch.int64),
        "weight": _joined([one.batch.weight for one in seen]),
        "index": _joined([one.batch.index for one in seen]),
    }
    for name in LOGPS:
        values: list[Tensor] = [value for one in seen if (value := getattr(one.logps, name)) is not None]
        if len(values) == len(seen):
            tensors[name] = _joined(values)
    for name in seen[0].values:
        tensors[name] = _joined([one.values[name] for one in seen])
    scores = [(b.score_chosen, b.score_rejected) for b in (one.batch for one in seen)]
    both = [torch.stack([c, r]) for c, r in scores if c is not None and r is not None]
    if len(both) == len(seen):
        tensors["scores"] = torch.cat(both, dim=1).cpu()
    header = DumpHeader(
        step=step,
        rank=rank,
        ranks=ranks,
        reason=_printable(reason),
        loss=loss,
        formula=_printable(formula),
        layout="packed" if seen[0].batch.spans is not None else "padded",
        micro_batches=[one.batch.pairs for one in seen],
        gradient_scale=gradient_scale,
        step_pairs=seen[0].batch.step_pairs,
        origins=[_printable(origin(row, one.batch.split)) for one in seen for row in one.batch.index.tolist()],
        checkpoint=last_checkpoint(run_dir, step),
    )
    path = run_dir / FOLDER / (f"step-{step}.safetensors" if ranks == 1 else f"step-{step}-rank-{rank}.safetensors")
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as file:
        file.write(save(tensors, metadata={"caldpo": header.model_dump_json()}))
    return path


def pairs_of(batch: PairBatch) -> list[tuple[list[int], list[int], list[int]]]:
    """Split a batch into prompt, chosen and rejected token ids of each pair, padding pairs included."""
    count, ids = batch.pairs, batch.input_ids.flatten().tolist()
    targets, predicts = batch.targets.tolist(), batch.predicts.tolist()
    lengths, width = batch.response_lengths.tolist(), batch.input_ids.shape[1]
    pairs, at, row = [], 0, 0
    for i in range(count):
        # the first token of the chosen response is predicted where its prompt ends
        begin = row if batch.spans is not None else predicts[at] // width * width
        prompt = ids[begin : predicts[at] + 1]
        chosen, rejected = (lengths[i], lengths[count + i])
        pairs.append((prompt, targets[at : at + chosen], targets[at + chosen : at + chosen + rejected]))
        at += chosen + rejected
        row += sum(batch.spans[i]) if batch.spans is not None else 0
    return pairs


def read_dump(path: Path) -> Dump:
    """Read a step's batch.

    Raises:
        CaldpoError: the file is missing, damaged, or no dump.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        header = json.loads(metadata["caldpo"])
        if header["format"] != FORMAT:
            raise _no_dump(path, f"it is of the format {header['format']!r}, and this version reads {FORMAT!r}")
        return _checked(path, DumpHeader(**header), tensors)
    except FileNotFoundError as error:
        raise _no_dump(path, "there is no such file") from error
    except OSError as error:
        raise _no_dump(path, f"it cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise _no_dump(path, f"it is damaged, or no batch that a run has written ({detail})") from error


def _checked(path: Path, header: DumpHeader, tensors: dict[str, Tensor]) -> Dump:
    """Build the dump, checking its parts against each other.

    Raises:
        ValueError, KeyError, TypeError: a part is missing, or has another type than is written.
    """
    _require_types(tensors)
    tokens, ends = tensors.pop("tokens").tolist(), tensors.pop("ends").tolist()
    index, weight, scores = tensors.pop("index").tolist(), tensors.pop("weight").tolist(), tensors.pop("scores", None)
    count = len(index)
    sizes = {len(weight), len(header.origins), sum(header.micro_batches), *(len(value) for value in tensors.values())}
    sizes |= set() if scores is None else {scores.shape[1]}
    fits = (
        count > 0
        and sizes == {count}
        and header.rank < header.ranks
        and len(ends) == 3 * count + 1
        and ends[0] == 0
        and ends[-1] == len(tokens)
        and all(a < b for a, b in pairwise(ends))  # no sequence is empty
        and min(tokens) >= 0
    )
    if not fits:
        raise _no_dump(path, "its parts do not fit each other")
    both = [(None, None)] * count if scores is None else list(zip(*scores.tolist(), strict=True))
    sequences = [tokens[begin:end] for begin, end in pairwise(ends)]
    triples = zip(sequences[0::3], sequences[1::3], sequences[2::3], strict=True)
    pairs = [
        TokenizedPair(prompt, chosen, rejected, both[i][0], both[i][1], index[i], header.origins[i])
        for i, (prompt, chosen, rejected) in enumerate(triples)
    ]
    return Dump(header, pairs, weight, tensors)


def _require_types(tensors: dict[str, Tensor]) -> None:
    """Check shape and dtype of each tensor.

    Raises:
        ValueError: one has another than is written.
    """
    for name, value in tensors.items():
        kinds = _INTEGERS if name in ("tokens", "ends", "index") else _FLOATS
        if value.dtype not in kinds or value.shape[: value.dim() - 1] != ((2,) if name == "scores" else ()):
            raise ValueError(f"{name!r} is {value.dtype} of the shape {tuple(value.shape)}")


def _printable(text: str) -> str:
    """Replace lone surrogates, which names of files can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def last_checkpoint(run_dir: Path, step: int) -> str | None:
    """Find the latest checkpoint from before ``step``'s update, relative to the run's folder."""
    steps = [
        step_before
        for step_before, folder in checkpoint_folders(run_dir).items()
        if step_before <= step and ((folder / WEIGHTS).is_file() or (folder / WEIGHT_PARTS).is_dir())
    ]
    return f"{CHECKPOINTS}/step-{steps[-1]}" if steps else None


def _joined(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.detach().cpu() for value in values])


def _no_dump(path: Path, reason: str) -> CaldpoError:
    return CaldpoError(
        reason, key="replay", value=path, remedy=f"name a file of {FOLDER}/ in a run's folder, as the run wrote it"
    )
