"""Batches in order, prepared by worker processes while the model trains."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset


class _Batches(Dataset):
    def __init__(self, batch_at: Callable):
        self.batch_at = batch_at

    def __getitem__(self, index):
        return self.batch_at(index)


def stream(
    batch_at: Callable, indices: Sequence[int], workers: int, before: Callable[[int], object] = lambda index: None
) -> Iterator[dict]:
    """Yields batch_at(index) for every index.

    Args:
        workers: processes that prepare batches ahead, two each; 0 prepares each batch when it is asked for.
        before: called with each index before its batch is yielded; without workers also before it is prepared.
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
    for index, batch in zip(indices, loader):
        before(index)
        yield batch
