"""The queue in front of a model: requests of one setting that wait together are run as one batch."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ..errors import JanusError, first_line, is_out_of_memory
from ..progress import Cancelled
from .errors import RequestRefused


@dataclass(eq=False)
class Job:
    """A request that waits or runs.

    Attributes:
        setting: jobs with equal ones can share a batch.
        count: images or answers.
        payload: what the batch's function reads.
        on_text: called in the model's thread with the text so far that is certain, for streaming.
        cancelled: nobody waits for the result any more.
    """

    setting: str
    count: int
    payload: object
    on_text: Callable[[str], None] | None = None
    cancelled: bool = False
    result: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def cancel(self):
        """Takes the job out of the queue, or out of what its batch runs for."""
        self.cancelled = True
        self.result.cancel()


class Batcher:
    """Runs jobs in a thread of its own, one batch at a time, in the order in which their settings came.

    Args:
        run: a function of a list of jobs and a callback (done, total) -> bool; it returns a result per job.
        batch_size: the most images or answers in a batch, unless a single job has more.
        queue_size: the most images or answers that wait.
        wait: seconds that a batch that is not full waits for one more, when the model has nothing to do.
        observe: called with the size of each batch, for metrics.
    """

    def __init__(self, run, batch_size: int, queue_size: int, wait: float = 0.01, observe=lambda size: None):
        self.run, self.batch_size, self.queue_size, self.wait = run, batch_size, queue_size, wait
        self.observe, self.waiting, self.running = observe, deque(), []
        self.thread = ThreadPoolExecutor(1, "model")
        self.wake, self.task = asyncio.Event(), None

    @property
    def length(self) -> int:
        """Images or answers that wait."""
        return sum(job.count for job in self.waiting if not job.cancelled)

    def submit(self, job: Job) -> asyncio.Future:
        """Puts a job into the queue. Raises RequestRefused (429) when it is full."""
        if self.task is None:
            self.task = asyncio.get_running_loop().create_task(self._serve())
        if self.waiting and self.length + job.count > self.queue_size:
            raise RequestRefused("The server is busy: try again later.", 429, code="queue_full")
        self.waiting.append(job)
        self.wake.set()
        return job.result

    async def close(self):
        """Refuses what waits, and stops after the token or step that is being computed."""
        for job in [*self.waiting, *self.running]:
            job.cancel()
        if self.task is not None:
            self.task.cancel()
        await asyncio.to_thread(self.thread.shutdown)

    async def _serve(self):
        while True:
            await self.wake.wait()
            before = 0
            while before < self.length < self.batch_size:  # until no more come
                before = self.length
                await asyncio.sleep(self.wait)
            while self.running or self._take():
                await self._run_batch(self.running)
                self.running = []
            self.wake.clear()

    def _take(self) -> list[Job]:
        """Moves the oldest job, and those of its setting that fit into a batch with it, from waiting to running."""
        self.waiting = deque(job for job in self.waiting if not job.cancelled)
        if not self.waiting:
            return []
        batch, count = [], 0
        for job in [job for job in self.waiting if job.setting == self.waiting[0].setting]:
            if batch and count + job.count > self.batch_size:
                break
            batch.append(job)
            count += job.count
        self.waiting = deque(job for job in self.waiting if job not in batch)
        self.running = batch
        return batch

    async def _run_batch(self, batch: list[Job]):
        self.observe(sum(job.count for job in batch))
        for job, found in await asyncio.get_running_loop().run_in_executor(self.thread, self._results, batch):
            if job.result.done():
                continue
            if isinstance(found, Exception):
                job.result.set_exception(found)
            else:
                job.result.set_result(found)

    def _results(self, batch: list[Job]) -> list[tuple[Job, object]]:
        """(job, result or exception) of each; if the batch fails, its jobs are tried one by one."""

        def callback(done: int, total: int) -> bool:
            return not all(job.cancelled for job in batch)

        try:
            return list(zip(batch, self.run(batch, callback)))
        except Cancelled:
            return []
        except Exception as error:
            if len(batch) > 1:
                return [pair for job in batch if not job.cancelled for pair in self._results([job])]
            return [(batch[0], _for_client(error))]


def _for_client(error: Exception) -> RequestRefused:
    """What a client is told; only errors that a user can act on are shown as they are."""
    if isinstance(error, RequestRefused):
        return error
    if is_out_of_memory(error):
        return RequestRefused("Memory ran out: ask for fewer or smaller images.", 503, code="out_of_memory")
    if isinstance(error, JanusError):
        return RequestRefused(" ".join(str(error).split()), 400)
    return RequestRefused(f"The model failed ({type(error).__name__}: {first_line(error)}).", 500)
