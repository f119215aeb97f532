"""A data loader that can go on in the middle of an epoch."""

from __future__ import annotations

import signal
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from caldpo.data.batch_sampler import StepBatchSampler
from caldpo.data.collate import PairBatches
from caldpo.types import PairBatch


def _leave_signals_to_the_run(worker: int) -> None:
    """A signal to the whole process group asks the run to save itself, for which it needs its workers."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _end_workers(loader: DataLoader[PairBatch]) -> None:
    """At the exit of the process Python would wait for them for ever: they ignore SIGTERM."""
    iterator: Any = loader._iterator  # kept where workers persist; a DataLoader has no way to close it
    if iterator is not None:
        iterator._shutdown_workers()  # as Lightning ends those of a DataLoader; does nothing once Python shuts down
        for worker in iterator._workers:
            worker.kill()
        loader._iterator = None


class PairLoader:
    """Iterates over one epoch of batches at a time and knows how many it handed out.

    Lightning takes any iterable. It finds ``sampler`` to tell it the epoch, and ``state_dict`` and
    ``load_state_dict`` to put the place in the epoch into a checkpoint. Being no ``DataLoader`` itself, it is
    never rebuilt with another sampler.

    Batches are counted here rather than in the sampler, which workers make run ahead of training.

    Args:
        batches: the split.
        sampler: says which rows make up each batch.
        workers: processes that put batches together; 0 does it in this one.
        prefetch: batches that each of them keeps ready.
        pin_memory: hand out batches in page-locked memory, for fast copies to a GPU.
    """

    batch_sampler = None  # Lightning looks at it beside ``sampler``

    def __init__(
        self,
        batches: PairBatches,
        sampler: StepBatchSampler,
        *,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self.sampler = sampler
        self._place = (sampler.epoch, sampler.start)  # epoch, batches handed out in it
        self._loader = DataLoader(
            batches,
            batch_size=None,  # the sampler yields whole batches
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            pin_memory=pin_memory,
            # Each pass draws a seed for its workers; drawn from the global generator, it would shift dropout.
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_run,
        )

        weakref.finalize(self, _end_workers, self._loader)  # at the latest when the process ends

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[PairBatch]:
        # A generator starts with the first batch, after Lightning has set the epoch.
        epoch, start = self.sampler.epoch, self.sampler.start
        self._place = (epoch, start)
        try:
            for handed_out, batch in enumerate(self._loader, start + 1):
                self._place = (epoch, handed_out)
                yield batch
        finally:
            self.sampler.start = 0

    def close(self) -> None:
        """Let the workers end, whose batches are no longer needed."""
        _end_workers(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the number of batches handed out in it."""
        return self.sampler.state(*self._place)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batches that were handed out when the state was taken."""
        self.sampler.load_state(state_dict)
        self._place = (self.sampler.epoch, self.sampler.start)
