"""Retrieval of persons beside the released evaluations: who is asked, who is offered, distances, CMC, mAP, mINP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moodal.core.errors import DataError
from moodal.interop.parity import Case, Quantity, compare, compare_number
from moodal.metrics.retrieval import LOCATIONS, Retrieval, distances, rank_gallery, sysu, sysu_lists


def check_sysu(case: Case) -> list[Quantity]:
    """Every mode and number of shots of a SYSU-MM01 case, named "<mode>_<shots>shot".

    Lists and distances are those of the first trial. Raises ``DataError`` if the case's cameras are not those of the
    protocol.
    """
    _check_cameras(case)
    kept = np.isin(_array(case, "ids"), case.facts["config"]["test_ids"])
    who, camera = _array(case, "ids")[kept], _array(case, "cameras")[kept]
    embedding = _array(case, "features")[kept]
    turns = _array(case, "permutations")[:, kept]
    place = np.stack([_places(row, who=who, camera=camera) for row in turns], axis=1)
    found: list[Quantity] = []
    for name, values in case.facts["values"].items():
        mode, _, shots = name.partition("_")
        count = int(shots.removesuffix("shot"))
        first = sysu_lists(who, camera=camera, place=place[:, 0], mode=mode, shots=count)
        ours = {
            "gallery_ids": who[first.gallery],
            "gallery_locations": LOCATIONS[camera[first.gallery] - 1],
            "query_ids": who[first.query],
            "query_locations": LOCATIONS[camera[first.query] - 1],
            "distance": distances(embedding[first.query], embedding[first.gallery]),
        }
        found += _compare_lists(case, name, ours)
        trials = sysu(embedding, who, camera=camera, place=place, mode=mode, shots=count)
        found += _compare_trials(case, name, trials, values)
    return found


def check_regdb(case: Case) -> list[Quantity]:
    """Both directions of a RegDB case, ranked by similarity."""
    visible, thermal = _array(case, "visible"), _array(case, "thermal")
    similarity = visible @ thermal.T
    sides = {"visible": _array(case, "visible_ids"), "thermal": _array(case, "thermal_ids")}
    allowed = case.facts["tolerance"]["values"]
    limits = {"outputs": allowed}
    found = [compare("similarity", torch.from_numpy(similarity), case.outputs["similarity"], limits)]
    for name, values in case.facts["values"].items():
        asked, _, offered = name.partition("_to_")
        apart = -similarity if asked == "visible" else -similarity.T
        ours = rank_gallery(apart, query=sides[asked], gallery=sides[offered])
        training = values["in_training"]
        found += [
            _curve(f"{name}.cmc", ours.cmc, values["cmc"], allowed),
            _number(f"{name}.mAP", ours.map, values["mAP"], allowed),
            _number(f"{name}.mINP", ours.minp, values["mINP"], allowed),
            _curve(f"{name}.in_training.cmc", ours.cmc, training["cmc_first_match"], allowed),
            _number(f"{name}.in_training.mAP", ours.map, training["mAP"], allowed),
        ]
    return found


def _check_cameras(case: Case) -> None:
    config = case.facts["config"]
    if list(config["camera_locations"]) != LOCATIONS.tolist():
        raise DataError(f"The case has cameras at {config['camera_locations']}; SYSU-MM01 has {LOCATIONS.tolist()}.")


def _places(turn: npt.NDArray[Any], *, who: npt.NDArray[Any], camera: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(N,) the place of each picture in the permutation of its identity and camera; ``turn`` holds those permutations."""
    place = np.empty_like(turn)
    for block in np.unique(np.stack([who, camera]), axis=1).T:
        rows = np.flatnonzero((who == block[0]) & (camera == block[1]))
        place[rows[turn[rows]]] = np.arange(len(rows))
    return place


def _compare_lists(case: Case, name: str, ours: Mapping[str, npt.NDArray[Any]]) -> list[Quantity]:
    stored = {key: tensor for key, tensor in case.outputs.items() if key.startswith(f"{name}.")}
    limits = {"outputs": case.facts["tolerance"]["values"]}
    return [compare(key, torch.from_numpy(ours[key[len(name) + 1 :]]), stored[key], limits) for key in stored]


def _compare_trials(case: Case, name: str, trials: Sequence[Retrieval], values: Mapping[str, Any]) -> list[Quantity]:
    allowed = case.facts["tolerance"]["values"]
    found = []
    for number, (ours, theirs) in enumerate(zip(trials, values["trials"], strict=True)):
        found.append(_curve(f"{name}.trial{number}.cmc", ours.cmc, theirs["cmc"], allowed))
        found.append(_number(f"{name}.trial{number}.mAP", ours.map, theirs["mAP"], allowed))
    mean = np.mean([trial.cmc for trial in trials], axis=0)
    found.append(_curve(f"{name}.mean_cmc", mean, values["mean_cmc"], allowed))
    found.append(_number(f"{name}.mean_mAP", float(np.mean([t.map for t in trials])), values["mean_mAP"], allowed))
    return found


def _curve(name: str, ours: npt.NDArray[np.float64], theirs: Sequence[float], allowed: float) -> Quantity:
    """CMC by rank; some releases stop at a rank."""
    stored = torch.tensor(theirs, dtype=torch.float64)
    return compare(name, torch.from_numpy(ours[: len(stored)]), stored, {"outputs": allowed})


def _number(name: str, ours: float, theirs: float, allowed: float) -> Quantity:
    return compare_number(name, ours, theirs, absolute=allowed, relative=0.0)


def _array(case: Case, name: str) -> npt.NDArray[Any]:
    return case.inputs[name].numpy()
