"""One thread that owns the model: requests wait in a bounded queue and are answered in batches."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

from moodal.serving.metrics import Metrics
from moodal.serving.refusal import busy, starting
from moodal.serving.settings import ServeSettings

if TYPE_CHECKING:
    from moodal.features.clip import ExtractedClip
    from moodal.predictor import Prediction, Predictor

log = logging.getLogger(__name__)


@dataclass
class Work:
    """A clip to predict. ``steps``: of its longest stream, the padding it asks of its batch."""

    clip: ExtractedClip
    evidence: bool
    answer: Future[Prediction] = field(default_factory=Future)

    @property
    def steps(self) -> int:
        return max((len(stream) for stream in self.clip.streams.values()), default=1)


class Batcher:
    """Micro-batches: the first request waits ``batch_wait`` seconds for others, then all go through the model together.

    A batch that fails is tried again row by row, so that one request cannot spoil those beside it.
    """

    def __init__(self, predictor: Predictor, settings: ServeSettings, metrics: Metrics) -> None:
        self._predictor, self._settings, self._metrics = predictor, settings, metrics
        self._queue: deque[Work] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._seconds_per_row = 0.02  # a guess until the first batch has been timed
        self._thread = threading.Thread(target=self._run, name="moodal-model", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def submit(self, clip: ExtractedClip, *, evidence: bool = True) -> Future[Prediction]:
        """Put a clip into the queue. Raises Refusal when it is full (429) or the server stops (503)."""
        work = Work(clip, evidence)
        with self._change:
            if self._closing:
                raise starting("The server is stopping; send the request again in a moment.")
            if len(self._queue) >= self._settings.queue:
                wait = min(60, max(1, ceil(len(self._queue) * self._seconds_per_row)))
                raise busy(
                    f"{len(self._queue)} requests are waiting, which is as many as may; try again in {wait} s.",
                    retry_after=wait,
                )
            self._queue.append(work)
            self._change.notify()
        return work.answer

    def close(self) -> None:
        """Answer what is in the queue, then stop."""
        with self._change:
            self._closing = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            started = time.monotonic()
            live = [work for work in batch if work.answer.set_running_or_notify_cancel()]
            if live:
                self._answer(live)
                self._metrics.batch_rows.observe(len(live))
                per_row = (time.monotonic() - started) / len(live)
                self._seconds_per_row += 0.1 * (per_row - self._seconds_per_row)

    def _take(self) -> list[Work]:
        """The next batch in order of arrival; empty only when there is nothing left and the server stops."""
        with self._change:
            self._change.wait_for(lambda: self._queue or self._closing)
            until = time.monotonic() + self._settings.batch_wait
            while len(self._queue) < self._settings.batch and not self._closing:
                left = until - time.monotonic()
                if left <= 0 or not self._change.wait(left):
                    break
            batch: list[Work] = []
            while self._queue and self._fits(batch, self._queue[0]):
                batch.append(self._queue.popleft())
            return batch

    def _fits(self, batch: Sequence[Work], work: Work) -> bool:
        if not batch:
            return True
        padded = (len(batch) + 1) * max(work.steps, *(other.steps for other in batch))
        same = work.evidence == batch[0].evidence
        return same and len(batch) < self._settings.batch and padded <= self._settings.batch_steps

    def _answer(self, live: Sequence[Work]) -> None:
        try:
            found = self._predictor.predict([work.clip for work in live], evidence=live[0].evidence)
            pairs = list(zip(live, found, strict=True))
        except Exception as fault:  # the thread must outlive whatever a request brings about
            if len(live) == 1:
                live[0].answer.set_exception(fault)
                return
            log.warning("A batch of %d failed (%s); its rows are tried alone.", len(live), type(fault).__name__)
            for work in live:
                self._answer([work])
            return
        for work, prediction in pairs:
            work.answer.set_result(prediction)
