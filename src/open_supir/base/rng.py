"""Randomness that depends on a key alone: the same on every machine, rank and worker."""

import hashlib

import numpy as np


def keyed_hash(*key: object, size: int = 16) -> int:
    """Hash a tuple of plain values to a non-negative integer of `size` bytes; stable everywhere."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=size).digest()
    return int.from_bytes(digest, "little")


def keyed_rng(*key: object) -> np.random.Generator:
    """Make a random generator that depends on nothing but `key`."""
    return np.random.Generator(np.random.Philox(key=keyed_hash(*key)))
