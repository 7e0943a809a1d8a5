"""The same work list on Ray Data, for clusters whose machines see the same folders. Extra: cluster.

Each actor holds one process of :mod:`moodal.features.workers`, so limits, faults and results are the same as without Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from moodal.core.errors import MissingExtra, MoodalError
from moodal.features.work_folder import Key
from moodal.features.workers import Crew, Job, Outcome, Plan
from moodal.features.worklist import Item


class _Actor:
    """Lives on a machine of the cluster; extracts row by row."""

    def __init__(self, plan: Plan) -> None:
        self.crew = Crew(plan, 1)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        job = Job(int(row["place"]), Item(**row["item"]))
        try:
            (outcome,) = self.crew.run([job])
        except MoodalError as fault:
            return {"stop": str(fault)}
        return {"stop": "", **asdict(outcome)}


def run_on_ray(plan: Plan, jobs: Sequence[Job], workers: int, *, address: str | None = None) -> Iterator[Outcome]:
    """The outcome of each job as it is done, on ``workers`` actors of one core each.

    ``address``: of a running cluster; None starts Ray on this machine, and ends it afterwards. Raises ``MissingExtra``
    without Ray, and ``MoodalError`` where extraction cannot work at all.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        local = {"num_cpus": workers + 1, "include_dashboard": False} if address is None else {"address": address}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **local)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"place": job.place, "item": asdict(job.item)} for job in jobs]
        # One block a clip, so that a slow one holds up no other and progress is told for each.
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Actor,  # type: ignore[arg-type]  # Ray makes one an actor and calls it
            fn_constructor_args=(plan,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
        )
        for row in done.iter_rows():
            if row["stop"]:
                raise MoodalError(row["stop"])
            key = None if row["key"] is None else Key(**row["key"])
            yield Outcome(int(row["place"]), key, row["fault"], bool(row["again"]))
    except ray.exceptions.RayError as fault:
        reason = str(fault).strip().splitlines()[-1]
        raise MoodalError(
            f"Ray ended ({reason}); check that its machines see the same folders and packages."
        ) from fault
    finally:
        if ours:
            ray.shutdown()


def _ray() -> Any:
    """Ray with Ray Data. Raises MissingExtra, or MoodalError where the packages it needs do not fit."""
    try:
        import ray
    except ImportError as fault:
        raise MissingExtra("ray", "cluster") from fault
    try:
        import ray.data
    except ImportError as fault:
        raise MoodalError(
            f"Ray Data cannot be used ({fault}); install what fits: pip install 'moodal[cluster]'."
        ) from fault
    return ray
