"""Clips are read in processes of their own, so that a hostile file can end one of them and nothing else."""

from __future__ import annotations

import json
import logging
import multiprocessing
import queue
import shutil
import signal
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moodal.core.errors import DataError
from moodal.core.spec import Modality
from moodal.serving import worker
from moodal.serving.metrics import Metrics
from moodal.serving.parcel import unpack
from moodal.serving.refusal import Refusal, starting, too_slow, unusable
from moodal.serving.settings import MIB, ServeSettings

if TYPE_CHECKING:
    from moodal.features.clip import ExtractedClip

log = logging.getLogger(__name__)

#: The largest answer that is read of a decoding process.
ANSWER_BYTES = 512 * MIB


@dataclass(frozen=True, kw_only=True)
class Job:
    """A file to read, from ``start`` to ``end`` seconds. ``text``: what is said in it, where the client told."""

    path: str
    id: str
    text: str | None = None
    start: float = 0.0
    end: float | None = None


class _Lost(Exception):
    """The process is gone or not to be trusted. ``cause``: a word for the metrics."""

    def __init__(self, cause: str, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause


class Decoder:
    """One decoding process, started again whenever it is lost. Used by one thread at a time."""

    def __init__(self, make: worker.Maker, limits: worker.WorkerLimits, folder: Path) -> None:
        self._make, self._limits, self._folder = make, limits, folder
        self.served = 0
        self.ready = False
        self.start()

    def start(self) -> None:
        """A fresh process; it loads its models meanwhile."""
        context = multiprocessing.get_context("spawn")
        self._folder.mkdir(exist_ok=True)
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._make, self._limits, str(self._folder))
        self._process = context.Process(target=worker.main, args=arguments, name="moodal-decoder", daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.served, self.ready = 0, False

    def kill(self) -> None:
        """End the process, whatever it is doing, and remove what it wrote."""
        self.ready = False
        self._process.kill()
        self._process.join()
        self._connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def look(self, seconds: float = 0.0) -> bool:
        """Whether the process has its models, waiting for up to ``seconds``. Raises _Lost when it cannot start."""
        if not self.ready and self._connection.poll(seconds):
            kind, rest = self._receive()
            if kind != worker.READY:
                raise _Lost("start", f"The decoder could not start: {rest.decode(errors='replace')}")
            self.ready = True
        return self.ready

    def ask(self, job: Job, seconds: float) -> tuple[bytes, bytes]:
        """The kind and content of the answer. Raises _Lost when none comes within ``seconds``."""
        self.served += 1
        try:
            self._connection.send_bytes(json.dumps(asdict(job)).encode())
        except OSError as fault:
            raise _Lost("crash", self._end()) from fault
        if not self._connection.poll(seconds):
            raise _Lost("time", f"Reading the clip took longer than {seconds:.0f} s; send a shorter or simpler one.")
        return self._receive()

    def _receive(self) -> tuple[bytes, bytes]:
        try:
            answer = self._connection.recv_bytes(ANSWER_BYTES)
        except (EOFError, OSError) as fault:
            self._process.join(1.0)
            cause = "time" if self._process.exitcode == -signal.SIGXCPU else "crash"
            raise _Lost(cause, self._end()) from fault
        return answer[:1], answer[1:]

    def _end(self) -> str:
        code = self._process.exitcode
        if code == -signal.SIGXCPU:
            return (
                f"Reading the clip took more than {self._limits.cpu_seconds} s of processor time; send a shorter one."
            )
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return f"The decoder stopped while it read the clip ({how}); the file is damaged or not what it seems."


class DecoderPool:
    """As many decoding processes as ``settings.workers``; what waits for one waits here."""

    def __init__(
        self,
        make: worker.Maker,
        settings: ServeSettings,
        folder: Path,
        *,
        widths: Mapping[Modality, int],
        metrics: Metrics,
    ) -> None:
        self._settings, self._widths, self._metrics = settings, widths, metrics
        limits = worker.WorkerLimits(memory=settings.worker_memory, cpu_seconds=settings.cpu_seconds)
        self._all = [Decoder(make, limits, folder / f"decoder-{n}") for n in range(settings.workers)]
        self._idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for decoder in self._all:
            self._idle.put(decoder)
        self._threads = ThreadPoolExecutor(settings.workers, thread_name_prefix="moodal-decoding")

    @property
    def ready(self) -> int:
        """Processes that could read a clip at once."""
        return sum(decoder.ready for decoder in self._all)

    def look(self) -> None:
        """Note which idle processes have loaded their models; replace those that could not start."""
        for _ in range(self._idle.qsize()):
            try:
                decoder = self._idle.get_nowait()
            except queue.Empty:
                return
            try:
                decoder.look()
            except _Lost as lost:
                self._replace(decoder, lost)
            finally:
                self._idle.put(decoder)

    def extract(self, job: Job, *, seconds: float) -> Future[ExtractedClip]:
        """The clip of ``job``, within ``seconds`` from now; the future may raise Refusal (422, 503, 504)."""
        return self._threads.submit(self._extract, job, time.monotonic() + seconds)

    def close(self) -> None:
        """Finish what is being read, then end the processes."""
        self._threads.shutdown(wait=True)
        for decoder in self._all:
            decoder.kill()

    def _extract(self, job: Job, until: float) -> ExtractedClip:
        decoder = self._idle.get()  # never waits: there are as many threads as processes
        try:
            if not decoder.look(max(0.0, until - time.monotonic())):
                raise starting("The decoder is still loading its models; try again in a few seconds.")
            kind, content = decoder.ask(job, max(0.0, until - time.monotonic()))
            if kind == worker.UNUSABLE:
                raise unusable(content.decode(errors="replace"))
            if kind != worker.DONE:
                raise _Lost("fault", f"The clip could not be read ({content.decode(errors='replace')[:300]}).")
            clip = unpack(content, widths=self._widths)
            if decoder.served >= self._settings.recycle:
                self._replace(decoder, _Lost("recycled", f"it read {decoder.served} clips"))
            return clip
        except (_Lost, DataError) as fault:
            lost = fault if isinstance(fault, _Lost) else _Lost("fault", str(fault))
            self._replace(decoder, lost)
            raise _refusal(lost) from fault
        finally:
            self._idle.put(decoder)

    def _replace(self, decoder: Decoder, lost: _Lost) -> None:
        log.warning("A decoder is replaced: %s", lost)
        self._metrics.lost_decoders.labels(lost.cause).inc()
        decoder.kill()
        decoder.start()


def _refusal(lost: _Lost) -> Refusal:
    if lost.cause == "time":
        return too_slow(str(lost))
    return starting(str(lost)) if lost.cause == "start" else unusable(str(lost))
