"""Everything random is a function of (seed, where it is used), never of how often a generator was called before."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from ``seed`` and a path of names, the same on every machine and in every process."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded with :func:`derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


def seed_all(seed: int, *purpose: str | int) -> None:
    """Seed torch's global generators (dropout, initialisation, routing noise) for one named place."""
    torch.manual_seed(derived_seed(seed, *purpose))
