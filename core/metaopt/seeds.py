"""Seeds: one number makes all the others, by name, so that nothing depends on who draws first."""

import hashlib

from torch import Generator


def derive(seed: int, *names: str | int) -> int:
    """Return a seed of 63 bits for the purpose that `names` spell out: derive(0, "trial", 7, "tasks")."""
    text = ":".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: str | int) -> Generator:
    """Return a generator seeded for the purpose that `names` spell out."""
    return Generator().manual_seed(derive(seed, *names))
