"""Log-probabilities as the fake server has them, for a fake training to promise the same.

In a module of its own, as a stand-in that is started for every training imports no library.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path


def token_logprobs(weights: Path | None, ids: Sequence[int]) -> list[float]:
    """Return made-up log-probabilities of all ids but the first; other weights give others."""
    files = sorted(weights.glob("*.safetensors")) if weights is not None else []
    model = b"".join(path.read_bytes()[-4096:] for path in files)
    digests = (hashlib.blake2b(b"%d %d" % (k, i), key=hashlib.blake2b(model).digest())
               for k, i in enumerate(ids))  # fmt: skip
    return [-8 * digest.digest()[0] / 255 for digest in digests][1:]
