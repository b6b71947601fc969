"""Whether a server serves the model in the folder: its log-probabilities tell.

A training writes the log-probabilities of a few tokens beside the model it trained
(``optima.training.jobs.Logprobs``). A server that was started on that folder, or was given its
weights anew, is asked for them once.

Measured with SmolLM2-135M in bfloat16, 64 tokens, vLLM 0.32 and transformers on a CPU (2026-11-27),
as mean absolute differences per token in nats: the right weights 0.04 to 0.08 (four models, six
texts), transformers in float32 against bfloat16 0.03 to 0.08, the weights of the iteration before
0.17 to 0.31, those of the start model 0.5 to 1.0, one layer's MLP set to zero 0.42 to 0.58, all
weights zero 7.4. Of NaN weights vLLM answers HTTP 400: no JSON number.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from optima.errors import ServerError, StageError
from optima.serving.client import Server
from optima.serving.probe import prompt_logprobs
from optima.serving.reply import RetryableError
from optima.training.jobs import LOGPROBS_FILE, MODEL_DIR, Logprobs
from optima.types import ModelRef

logger = logging.getLogger(__name__)

LARGEST_NOISE = 0.4  # nats per token, five times what kernels and number formats were seen to do
LEAST_CHANGE = 0.05  # below it nothing is said about which of two models is served


def check_served(server: Server, model_name: str, model: ModelRef, timeout_s: float) -> None:
    """Raise StageError when what a server serves as ``model_name`` is not ``model``.

    A model without log-probabilities beside it (none of a training here, or of an older release)
    is not compared, nor is one whose server does not give any, which is logged. Raises
    RetryableError when the server does not answer.
    """
    path = Path(model.adapter or model.path)
    expected = read_logprobs(path)
    if expected is None:
        return
    try:
        found = prompt_logprobs(server, model_name, expected.token_ids, timeout_s)
    except RetryableError:
        raise
    except ServerError as error:
        logger.warning("server %d: not compared with the model in %s: %s",
                       server.index, path, error)  # fmt: skip
        return
    what = difference(found, expected)
    if what is not None:
        raise StageError(
            f"{path}: server {server.index} serves another model: {what}; run again to start it "
            "anew, and if that does not help, take what changes weights or their format out of "
            f"serving.extra_args, or move {path.parent} away and run again to train it anew"
        )
    logger.debug("server %d: serves the model in %s", server.index, path)


def read_logprobs(folder: Path) -> Logprobs | None:
    """Return the log-probabilities beside a trained model; None where there are none.

    Raises StageError when they cannot be read.
    """
    path = folder.parent / LOGPROBS_FILE
    if folder.name != MODEL_DIR or not path.is_file():
        return None
    try:
        return Logprobs.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StageError(
            f"{path}: cannot be read ({error.errors()[0]['msg']}); put it back from a copy, or "
            f"move {folder.parent} away and run again to make it anew"
        ) from error


def difference(found: Sequence[float], expected: Logprobs) -> str | None:
    """Return how log-probabilities show another model than the expected one; None if they do not.

    Noise is as far from the start model as from the trained one, or further; only weights from
    before the training are clearly nearer to the former.
    """
    apart, from_start = distance(found, expected.trained), distance(found, expected.start)
    if not math.isfinite(apart):
        return "not all of its log-probabilities are numbers"
    if apart > LEAST_CHANGE and from_start < apart / 2:
        return (
            f"its log-probabilities are {apart:.3f} nats a token away from those of the folder and "
            f"{from_start:.3f} from those of the model that was trained from: old weights"
        )
    if apart > LARGEST_NOISE:
        return (
            f"its log-probabilities are {apart:.3f} nats a token away from those of the folder, "
            f"where number formats account for {LARGEST_NOISE} at most"
        )
    return None


def distance(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the mean absolute difference per token, in nats; NaN when one is no number."""
    return sum(abs(a - b) for a, b in zip(found, expected, strict=True)) / len(expected)
