"""Randomness as a pure function of names: the same seed gives the same data on every machine.

Nothing in the project draws from a global generator or from ``hash()``; every draw comes from a
generator keyed by (run seed, stage, problem id, sample index) or a similar path of names.
"""

import hashlib
import random

SEED_BITS = 63  # fits the signed 64-bit seed field of an OpenAI-compatible server


def derive_seed(*path: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on every element of ``path`` and on its order."""
    key = "\x1f".join(f"{type(part).__name__}:{part}" for part in path)
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def rng(*path: str | int) -> random.Random:
    """Return a generator seeded by ``path``; equal paths give equal streams."""
    return random.Random(derive_seed(*path))


def digest(*parts: str, length: int = 16) -> str:
    """Return ``length`` hex digits that identify the content of ``parts``."""
    hasher = hashlib.blake2b(digest_size=32)
    for part in parts:
        data = part.encode()
        hasher.update(len(data).to_bytes(8, "big"))
        hasher.update(data)
    return hasher.hexdigest()[:length]
