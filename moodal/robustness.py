"""What ``moodal robustness`` does: stored runs scored while more and more is missing, with progress, into a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moodal.bench.compare import as_groups
from moodal.bench.robustness import Plan, Robustness, matched_groups, measure, names_of
from moodal.bench.runs import StoredRun
from moodal.build import make_fabric, stored_config
from moodal.console import WaitingBar
from moodal.core.errors import check
from moodal.methods import METHODS


def robustness(
    folders: Sequence[Path], plan: Plan | None, overrides: Mapping[str, Any], *, out: Path
) -> tuple[Robustness, list[Path]]:
    """Score the runs below ``folders`` and write tables, plots and numbers to ``out``.

    ``plan`` None: each run at the rate it was trained with. Returns the numbers and the files. Raises ``MoodalError``
    for settings other than where the data are, the device and the size of batches.
    """
    other = [key for key in overrides if not key.startswith("device.") and key not in ("data.root", "train.eval_batch")]
    check(
        not other,
        f"{', '.join(other)}: a run is scored with its own settings; only device.*, data.root and train.eval_batch may change.",
    )
    groups: Sequence[Sequence[StoredRun]] = as_groups(list(folders))
    if plan is None:
        groups = matched_groups(groups)
    names = [_titled(name, group[0].method) for name, group in zip(names_of(groups), groups, strict=True)]
    fabric = make_fabric(stored_config(groups[0][0].path, overrides).device)
    fabric.launch()
    with WaitingBar("robustness") as waiting:
        found = measure(groups, plan, names=names, overrides=overrides, fabric=fabric, progress=waiting)
    return found, found.write(out)


def _titled(name: str, method: str) -> str:
    """The name of a configuration with its method's title in place of the method's name."""
    return METHODS[method].title.partition(":")[0] + name.removeprefix(method)
