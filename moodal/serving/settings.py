"""What the server allows: every limit in one place, each with its unit."""

from __future__ import annotations

from dataclasses import dataclass

from moodal.core.errors import check

MIB = 2**20
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Limits of the server; what goes over one is answered with a sentence and the status in brackets.

    ``upload_bytes``: of an uploaded clip (413). ``json_bytes``: of a JSON request (413). ``clip_seconds``: length of a
    clip (422). ``upload_seconds``: for an upload to arrive (408). ``request_seconds``: for the answer after that (504).
    ``queue``: requests waiting for the model (429). ``uploads``: clips being received, waiting and being decoded (429),
    which bounds the disk space used to ``uploads`` times ``upload_bytes``. ``batch``: rows given to the model at once;
    ``batch_wait``: seconds that the first of them waits for company; ``batch_steps``: padded steps of a batch.
    ``steps``: of one stream of features (422). ``characters``: of a text (422). ``workers``: decoding processes, each
    with ``worker_memory`` bytes of address space and ``cpu_seconds`` of processor time for a clip, and replaced after
    ``recycle`` clips. ``connections``: open at once (503).
    """

    upload_bytes: int = 200 * MIB
    json_bytes: int = 16 * MIB
    clip_seconds: float = 120.0
    upload_seconds: float = 120.0
    request_seconds: float = 120.0
    queue: int = 64
    uploads: int = 8
    batch: int = 32
    batch_wait: float = 0.005
    batch_steps: int = 64_000
    steps: int = 16_000
    characters: int = 20_000
    workers: int = 1
    worker_memory: int = 16 * GIB
    cpu_seconds: int = 480
    recycle: int = 200
    connections: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_seconds"):
                check(value > 0, f"{name} is {value}; it must be more than 0 seconds.")
            elif name == "batch_wait":
                check(0 <= value <= 1, f"{name} is {value}; it must lie between 0 seconds and 1 second.")
            else:
                check(value >= 1, f"{name} is {value}; it must be 1 or more.")
