"""Made-up people before six cameras, laid out like SYSU-MM01: cameras 1, 2, 4, 5 see colours, 3 and 6 infrared light.

A person is a pattern of bright and dark on a coarse grid, and two colours, of the upper and of the lower half:

    b(h, w)     brightness in [0.2, 0.9], a grid of ``grid`` random values made smooth
    visible     b(h, w) * colour(h), the colours as bright as grey
    infrared    g(b(h, w)) in all three colours, g(b) = 0.9 - 0.6 b with ``inverted``, else 0.2 + 0.6 b
    every one   shifted by up to ``shift`` pixels, times the camera's gain, plus noise of deviation ``noise``

So the two modalities share who it is, and colour, which tells people apart among visible pictures, is of no use
between them. No published data set is imitated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moodal.core.errors import check
from moodal.core.random import derived_seed
from moodal.core.spec import Identification
from moodal.data.corpus import SPLITS, CorpusFacts, FeatureRecipe, RawCorpus, ReaderConfig
from moodal.data.pictures import People, Picture, drawn_places
from moodal.data.ragged import Ragged

NAME = "synthetic_reid"
CAMERAS, INFRARED = range(1, 7), (3, 6)
#: how much brighter each camera is.
GAINS: Mapping[int, float] = {1: 1.0, 2: 0.9, 3: 1.0, 4: 1.1, 5: 0.8, 6: 0.9}
TRIALS = 10


@dataclass(frozen=True, kw_only=True)
class SyntheticReidConfig(ReaderConfig):
    """Sizes and difficulty. Nothing is read from disk; equal settings give equal pictures, bit for bit.

    ``train``, ``valid``, ``test``: persons; ``each``: pictures of a person by a camera.
    """

    train: int = 48
    valid: int = 16
    test: int = 24
    each: int = 3
    height: int = 32
    width: int = 16
    grid: tuple[int, int] = (6, 3)
    inverted: bool = True
    shift: int = 2
    noise: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        check(min(self.train, self.valid, self.test) >= 2, "train, valid and test must each be 2 persons or more.")
        check(self.each >= 1, f"each is {self.each}; it must be 1 or more.")
        check(min(self.height, self.width) >= 8, f"pictures are {self.height} x {self.width}; 8 x 8 is the least.")
        check(len(self.grid) == 2 and min(self.grid) >= 1, f"grid is {self.grid}; write two numbers of 1 or more.")
        check(self.shift >= 0 and self.noise >= 0, "shift and noise cannot be negative.")


class SyntheticReid:
    """Reader of the made-up people."""

    Config: ClassVar[type[ReaderConfig]] = SyntheticReidConfig
    facts: ClassVar[CorpusFacts] = CorpusFacts(
        name=NAME,
        title="Synthetic people, visible and infrared",
        language="",
        task=Identification(48),
        protocol="sysu",
        source="made by moodal.data.synthetic_reid",
        licence="none needed",
        widths={"vision": 3},
    )

    @staticmethod
    def read(root: Path | None, cfg: Any, cache: Path) -> RawCorpus:  # noqa: ARG004
        """Make the corpus of ``cfg``; ``root`` and ``cache`` are not used."""
        return make(cfg)


def make(cfg: SyntheticReidConfig) -> RawCorpus:
    """The corpus of ``cfg``: pictures by split, person, camera and number, as a reader of a folder would list them."""
    root, pictures, person = Path(NAME), [], 0
    for split in SPLITS:
        for _ in range(getattr(cfg, split)):
            person += 1
            pictures += [
                Picture(
                    path=root / f"cam{camera}" / f"{person:04d}" / f"{number:04d}.png",
                    split=split, person=person, camera=camera, infrared=camera in INFRARED,
                )
                for camera in CAMERAS
                for number in range(1, cfg.each + 1)
            ]  # fmt: skip
    people = People(tuple(pictures))
    columns = people.columns()
    who = np.array([picture.person for picture in pictures])
    places = drawn_places(who, columns["camera"], trials=TRIALS, corpus=NAME)
    settings = {"height": cfg.height, "width": cfg.width}
    return RawCorpus(
        facts=replace(SyntheticReid.facts, task=Identification(people.trained)),
        clips=people.clips(root),
        streams={"vision": Ragged(paint(cfg, who - 1, columns["camera"]), np.arange(len(who) + 1))},
        recipes={"vision": FeatureRecipe(name="synthetic-pictures", version="1", width=3, settings=settings)},
        columns={**columns, "place": places},
        source={"seed": cfg.seed},
    )


def paint(cfg: SyntheticReidConfig, person: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) bytes of pictures of ``person`` (N,), from 0, by ``camera`` (N,), by the formulas above."""
    draw = np.random.default_rng(derived_seed(cfg.seed, NAME, "people"))
    count = int(person.max()) + 1
    bright = _smooth(draw.uniform(0.2, 0.9, (count, *cfg.grid)), cfg.height, cfg.width)
    colours = draw.dirichlet((1.5, 1.5, 1.5), (count, 2)).transpose(0, 2, 1) * 1.5  # (count, 3, halves)
    halves = (np.arange(cfg.height) >= cfg.height // 2).astype(int)
    seen = np.random.default_rng(derived_seed(cfg.seed, NAME, "pictures"))
    base = bright[person][:, None]
    warm = 0.9 - 0.6 * base if cfg.inverted else 0.2 + 0.6 * base
    infrared = np.isin(camera, INFRARED)[:, None, None, None]
    values = np.where(infrared, warm, base * colours[person][:, :, halves, None])
    values = _shifted(values, seen.integers(-cfg.shift, cfg.shift + 1, (len(person), 2)))
    gain = np.array([GAINS[number] for number in CAMERAS])[camera - 1][:, None, None, None]
    noise = seen.standard_normal((len(person), 3, cfg.height, cfg.width))
    noise = np.where(infrared, noise[:, :1], noise)
    return np.clip(255 * (values * gain + cfg.noise * noise), 0, 255).astype(np.uint8)


def _smooth(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """(P, rows, columns) -> (P, height, width), linear between the middles of the cells."""
    for axis, size in ((1, height), (2, width)):
        cells = grid.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
        low = np.minimum(place.astype(int), max(cells - 2, 0))
        high, share = np.minimum(low + 1, cells - 1), place - low
        share = share[None, :, None] if axis == 1 else share[None, None, :]
        grid = (1 - share) * grid.take(low, axis) + share * grid.take(high, axis)
    return grid


def _shifted(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Pictures (N, 3, H, W) moved by (N, 2) pixels, the edge repeated."""
    rows = np.clip(np.arange(values.shape[2]) + by[:, :1], 0, values.shape[2] - 1)
    columns = np.clip(np.arange(values.shape[3]) + by[:, 1:], 0, values.shape[3] - 1)
    picture, colour = np.arange(len(values))[:, None, None, None], np.arange(3)[None, :, None, None]
    return values[picture, colour, rows[:, None, :, None], columns[:, None, None, :]]
