"""What the server does with a request, apart from HTTP's routes: admit, receive, decode, predict, answer."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request

import moodal
from moodal.core.errors import MoodalError
from moodal.core.files import plain
from moodal.core.spec import MODALITIES
from moodal.features.clip import ExtractedClip
from moodal.features.words import WordSettings
from moodal.serving import inputs, uploads
from moodal.serving.batching import Batcher
from moodal.serving.decoding import DecoderPool, Job
from moodal.serving.folders import temporary_folder
from moodal.serving.metrics import Metrics
from moodal.serving.refusal import Refusal, busy, too_slow, unusable
from moodal.serving.settings import ServeSettings
from moodal.serving.worker import Maker, Reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moodal.predictor import Prediction, Predictor

log = logging.getLogger(__name__)


class Service:
    """One predictor behind its queue, and the processes that decode for it. ``make``: what a decoding process reads with."""

    def __init__(self, predictor: Predictor, settings: ServeSettings, make: Maker | None = None) -> None:
        self.settings, self.metrics = settings, Metrics()
        self._predictor = predictor
        self._make = make or reader(predictor, settings)
        self._read = {m: recipe.width for m, recipe in predictor.recipes.items()}
        self._made = {m: recipe.width for m, recipe in predictor.extractor.recipes.items()}
        self._batcher = Batcher(predictor, settings, self.metrics)
        self._uploads = 0
        self._pool: DecoderPool | None = None
        self._folder: Path | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Between start and stop: the thread of the model, the decoding processes and the temporary folder exist."""
        with temporary_folder() as folder:
            self._folder = folder
            pool = self._pool = DecoderPool(
                self._make, self.settings, folder, widths=self._made, metrics=self.metrics
            )  # fmt: skip
            self.metrics.follow(
                waiting=lambda: self._batcher.waiting, uploads=lambda: self._uploads, ready=lambda: pool.ready
            )
            self._batcher.start()
            try:
                yield
            finally:
                await asyncio.to_thread(pool.close)
                await asyncio.to_thread(self._batcher.close)

    def health(self) -> dict[str, Any]:
        """What is served, by which limits, and how busy it is."""
        assert self._pool is not None
        self._pool.look()
        limits = vars(self.settings)
        shown = ("upload_bytes", "json_bytes", "clip_seconds", "request_seconds", "steps", "characters")
        recipes, facts = self._predictor.recipes, self._predictor.facts
        return {
            "status": "ok",
            "version": moodal.__version__,
            "run": plain({**facts, "source": _shown(str(facts["source"]))}),
            "features": {m: {"name": recipes[m].name, "width": recipes[m].width} for m in MODALITIES if m in recipes},
            "limits": {name: limits[name] for name in shown},
            "decoders": {"ready": self._pool.ready, "all": self.settings.workers},
            "waiting": self._batcher.waiting,
            "uploads": self._uploads,
        }

    async def predict(self, request: Request) -> dict[str, Any]:
        """The answer to ``/predict``. Raises Refusal."""
        try:
            return await self._by_type(request)
        except Refusal:
            await uploads.drain(request.stream())
            raise

    async def _by_type(self, request: Request) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == "multipart/form-data":
            request.state.input = "clip"
            return await self._from_upload(request)
        if kind == "application/json":
            request.state.input = "json"
            return await self._from_json(request)
        raise Refusal(
            415, "unknown_type", f"The body is {kind[:60] or 'of no stated type'}; send multipart/form-data with a clip, "
            "or application/json with a text or features.",
        )  # fmt: skip

    async def _from_json(self, request: Request) -> dict[str, Any]:
        if _announced(request) > self.settings.json_bytes:
            raise uploads.long_json(self.settings)
        body = await uploads.whole(request.stream(), self.settings)
        read = partial(inputs.parse, body, widths=self._read, settings=self.settings)
        asked = await asyncio.to_thread(read)
        request.state.input = asked.kind
        prediction = await self._predicted(asked.clip, asked.evidence, time.monotonic() + self.settings.request_seconds)
        return plain(prediction.as_json())

    async def _from_upload(self, request: Request) -> dict[str, Any]:
        if _announced(request) > self.settings.upload_bytes + self.settings.characters * 4 + 8192:
            raise uploads.oversized(self.settings)
        with self._admitted(), self._place() as folder:
            given = await uploads.receive(
                request.headers["content-type"], request.stream(), folder, self.settings
            )  # fmt: skip
            self.metrics.received.inc(given.size)
            evidence = given.flag("evidence")
            until = time.monotonic() + self.settings.request_seconds
            clip = await self._extracted(given)
        for stage, seconds in clip.spent.items():
            self.metrics.stages.labels(stage).observe(seconds)
        prediction = await self._predicted(clip, evidence, until)
        return plain({**prediction.as_json(), "timeline": prediction.timeline()})

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._uploads >= self.settings.uploads:
            raise busy(
                f"{self._uploads} clips are being read, which is as many as may; try again in 5 s.", retry_after=5
            )
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """A folder for one upload."""
        assert self._folder is not None
        folder = Path(tempfile.mkdtemp(dir=self._folder, prefix="upload-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _extracted(self, given: uploads.Upload) -> ExtractedClip:
        """What the decoding processes read of an upload; they keep the time, so that the file is free when this ends."""
        assert self._pool is not None
        text = inputs.check_text(given.fields.get("text", ""), self.settings)
        start, end = given.number("start") or 0.0, given.number("end")
        if end is not None and end <= start:
            raise unusable(f"end is {end:g} s and start {start:g} s; the end must come after the start.")
        job = Job(path=str(given.path), id="clip", text=text or None, start=start, end=end)
        return await asyncio.wrap_future(self._pool.extract(job, seconds=self.settings.request_seconds))

    async def _predicted(self, clip: ExtractedClip, evidence: bool, until: float) -> Prediction:
        answer = asyncio.wrap_future(self._batcher.submit(clip, evidence=evidence))
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                return await answer
        except TimeoutError:
            seconds = self.settings.request_seconds
            raise too_slow(f"The answer took longer than {seconds:.0f} s; send less, or try again later.") from None
        except MoodalError as fault:
            raise unusable(" ".join(str(fault).split())) from fault


def _shown(source: str) -> str:
    """A run's source without the folders of this machine."""
    return Path(source).name if Path(source).is_absolute() else source


def _announced(request: Request) -> int:
    """The length of the body that the client states; 0 where it states none."""
    stated = request.headers.get("content-length", "0")
    return int(stated) if stated.isascii() and stated.isdigit() else 0


def reader(predictor: Predictor, settings: ServeSettings) -> Reader:
    """Reads clips as ``predictor.extract`` does, with the server's limits."""
    ours = predictor.extractor
    limits = replace(ours.settings.limits, seconds=settings.clip_seconds, bytes=settings.upload_bytes)
    words = ours.settings.words
    if words == WordSettings():  # nobody chose: what is spoken in the corpus of the run
        words = replace(words, language=str(predictor.facts["language"]))
    wanted = tuple(m for m in MODALITIES if m in predictor.modalities or m in ours.recipes)
    return Reader(replace(ours.settings, limits=limits, words=words), dict(ours.unmade), wanted)
