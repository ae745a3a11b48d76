"""Batches in order, prepared by worker processes while the model trains."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import JanusError, TrainingError, first_line


class _Batches(Dataset):
    def __init__(self, batch_at: Callable):
        self.batch_at = batch_at

    def __getitem__(self, index):
        try:
            return self.batch_at(index)
        except JanusError as error:  # raised as it is in the training process; DataLoader would add a traceback to it
            return error


@contextmanager
def worker_errors():
    """Raises TrainingError if a worker process of `stream` died; torch reports that wherever the training is."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # an error of batch_at says "in DataLoader worker process"
            raise
        raise TrainingError(
            f"A process that prepares batches died ({first_line(error)}): set loop.workers to 0, or give the "
            "container more shared memory."
        ) from None


def stream(
    batch_at: Callable, indices: Sequence[int], workers: int, before: Callable[[int], object] = lambda index: None
) -> Iterator[dict]:
    """Yields batch_at(index) for every index.

    Args:
        workers: processes that prepare batches ahead, two each; 0 prepares each batch when it is asked for.
        before: called with each index before its batch is yielded; without workers also before it is prepared.

    Raises:
        JanusError: batch_at did.
        RuntimeError: a worker process died (see worker_errors).
    """
    if not workers or not indices:
        for index in indices:
            before(index)
            yield batch_at(index)
        return
    loader = DataLoader(
        _Batches(batch_at),
        batch_size=None,  # batch_at returns whole batches
        sampler=indices,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    prepared = iter(loader)
    for index in indices:
        batch = next(prepared)
        if isinstance(batch, JanusError):
            raise batch
        before(index)
        yield batch
