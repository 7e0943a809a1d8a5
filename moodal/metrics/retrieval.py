"""Ranking a gallery for each query: CMC, mAP, mINP, and the protocols of RGB-infrared person re-identification.

Shapes  Q queries, G gallery rows, N rows of a split, D width of an embedding, T trials.
SYSU    Wu et al., ICCV 2017, and its released evaluation: infrared queries; the gallery has one picture (or ten) of
        each identity and visible camera, drawn anew in each trial; pictures from the query's own place are left out;
        in CMC each identity counts once, where it first appears; mAP ranks all pictures. Means over the trials.
RegDB   Ye et al. 2018: every picture of one modality against every picture of the other, in both directions.
AP      mean over the true matches of (matches so far / rank). mINP: matches / rank of the last match (Ye et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from moodal.metrics.checks import Flags, Floats, Integers, MetricError

Mode = Literal["all", "indoor"]

#: where the cameras 1 to 6 of SYSU-MM01 stand: the second and the third share a place.
LOCATIONS = np.array([1, 2, 2, 4, 5, 6])
QUERY_CAMERAS = (3, 6)  # infrared
GALLERY_CAMERAS: Mapping[Mode, tuple[int, ...]] = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
#: ranks that are reported.
RANKS = (1, 10, 20)


@dataclass(frozen=True)
class Retrieval:
    """Means over the queries that have a match: CMC by rank from 1, mean average precision, mean inverse penalty."""

    cmc: Floats
    map: float
    minp: float

    def scores(self) -> dict[str, float]:
        """rank1, rank10, rank20, map, minp. A gallery that is shorter than a rank is found whole there."""
        at = {f"rank{rank}": float(self.cmc[min(rank, len(self.cmc)) - 1]) for rank in RANKS}
        return at | {"map": self.map, "minp": self.minp}


@dataclass(frozen=True)
class Lists:
    """The rows of a split that are queries (Q,) and gallery (G,) in one trial."""

    query: Integers
    gallery: Integers


def rank_gallery(
    distance: npt.ArrayLike,
    *,
    query: npt.ArrayLike,
    gallery: npt.ArrayLike,
    hidden: npt.ArrayLike | None = None,
    by_identity: bool = False,
) -> Retrieval:
    """Rank the gallery for each query by ``distance`` (Q, G), nearest first, ties in gallery order.

    ``query`` (Q,) and ``gallery`` (G,) are identities; ``hidden`` (Q, G) marks pairs that are left out.
    ``by_identity``: in CMC every identity counts once, at its nearest picture. Queries without a match are skipped;
    raises ``MetricError`` if none has one.
    """
    apart, wanted, offered = np.asarray(distance, np.float64), np.asarray(query), np.asarray(gallery)
    if apart.shape != (len(wanted), len(offered)):
        raise MetricError(f"distance has shape {apart.shape}, expected ({len(wanted)}, {len(offered)}).")
    kept = np.ones(apart.shape, bool) if hidden is None else ~np.asarray(hidden, bool)
    order = np.argsort(np.where(kept, apart, np.inf), axis=1, kind="stable")  # hidden ones come last
    kept = np.take_along_axis(kept, order, axis=1)
    match = (offered[order] == wanted[:, None]) & kept
    found = match.any(axis=1)
    if not found.any():
        raise MetricError("No query has its identity in the gallery; queries and gallery must share identities.")
    match, kept, order = match[found], kept[found], order[found]
    rank, hits = np.arange(1, match.shape[1] + 1), match.cumsum(axis=1)
    precision = (hits / rank * match).sum(axis=1) / hits[:, -1]
    last = match.shape[1] - match[:, ::-1].argmax(axis=1)
    if by_identity:
        people, number = np.unique(offered, return_inverse=True)
        place, length = _identity_places(number[order], match, kept), len(people)
    else:
        place, length = match.argmax(axis=1), match.shape[1]
    cmc = np.bincount(place, minlength=length).cumsum() / len(match)
    return Retrieval(cmc, float(precision.mean()), float((hits[:, -1] / last).mean()))


def _identity_places(number: Integers, match: Flags, kept: Flags) -> Integers:
    """(Q,) how many other identities (``number``, ranked) come before the true one, each at its first kept place."""
    first = np.full((len(number), int(number.max()) + 1), number.shape[1])
    place = np.where(kept, np.arange(number.shape[1]), number.shape[1])
    np.minimum.at(first, (np.arange(len(number))[:, None], number), place)
    return (first < match.argmax(axis=1)[:, None]).sum(axis=1)


def distances(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    """(Q, D) and (G, D) -> (Q, G) Euclidean distances."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.sqrt(np.maximum(square, 0.0))


def sysu_lists(
    identity: npt.ArrayLike, *, camera: npt.ArrayLike, place: npt.ArrayLike, mode: Mode = "all", shots: int = 1
) -> Lists:
    """Queries and gallery of one trial, each by camera, then identity.

    ``identity``, ``camera`` (1 to 6), ``place``: (N,); ``place`` is where the trial's permutation puts a picture among
    those of its identity and camera, from 0; the first ``shots`` of visible cameras make the gallery.
    """
    who, where, turn = np.asarray(identity), np.asarray(camera), np.asarray(place)
    order = np.lexsort((turn, who, where))
    chosen = order[np.isin(where[order], GALLERY_CAMERAS[mode]) & (turn[order] < shots)]
    asked = np.lexsort((who, where))
    return Lists(asked[np.isin(where[asked], QUERY_CAMERAS)], chosen)


def sysu_trial(distance: npt.ArrayLike, lists: Lists, *, identity: npt.ArrayLike, camera: npt.ArrayLike) -> Retrieval:
    """One trial from its distances (Q, G): the query's own place is hidden, identities count once in CMC."""
    who, where = np.asarray(identity), LOCATIONS[np.asarray(camera, np.int64) - 1]
    hidden = where[lists.query][:, None] == where[lists.gallery][None, :]
    return rank_gallery(distance, query=who[lists.query], gallery=who[lists.gallery], hidden=hidden, by_identity=True)


def sysu(
    embedding: npt.ArrayLike,
    identity: npt.ArrayLike,
    *,
    camera: npt.ArrayLike,
    place: npt.ArrayLike,
    mode: Mode = "all",
    shots: int = 1,
) -> list[Retrieval]:
    """Every trial of a split: ``embedding`` (N, D), ``identity`` and ``camera`` (N,), ``place`` (N, T)."""
    rows, turns = np.asarray(embedding, np.float64), np.asarray(place)
    found = []
    for trial in range(turns.shape[1]):
        lists = sysu_lists(identity, camera=camera, place=turns[:, trial], mode=mode, shots=shots)
        apart = distances(rows[lists.query], rows[lists.gallery])
        found.append(sysu_trial(apart, lists, identity=identity, camera=camera))
    return found


def sysu_scores(
    embedding: npt.ArrayLike, identity: npt.ArrayLike, *, camera: npt.ArrayLike, place: npt.ArrayLike
) -> dict[str, float]:
    """Single-shot all-search, and "indoor_" indoor-search, means over the trials."""
    whole, indoor = (
        mean_scores(t.scores() for t in sysu(embedding, identity, camera=camera, place=place, mode=mode))
        for mode in ("all", "indoor")
    )
    return whole | {f"indoor_{key}": value for key, value in indoor.items()}


def regdb_scores(embedding: npt.ArrayLike, identity: npt.ArrayLike, *, infrared: npt.ArrayLike) -> dict[str, float]:
    """Visible queries against the thermal gallery, and "thermal_" thermal queries against the visible one."""
    rows, who = np.asarray(embedding, np.float64), np.asarray(identity)
    warm = np.asarray(infrared, bool)
    apart = distances(rows[~warm], rows[warm])
    there = rank_gallery(apart, query=who[~warm], gallery=who[warm]).scores()
    back = rank_gallery(apart.T, query=who[warm], gallery=who[~warm]).scores()
    return there | {f"thermal_{key}": value for key, value in back.items()}


def mean_scores(tables: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score over trials: of one split, or of the runs on the ten splits of RegDB."""
    rows: Sequence[Mapping[str, float]] = list(tables)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
