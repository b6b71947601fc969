"""New communication formats for the pool, proposed by a hosted model (paper section 3.1).

Any server that speaks the OpenAI chat API will do. Each accepted format is one file at once, so a
run that is cut off keeps what it has, and a second one adds to it.
"""

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import openai
from openai.types.chat import ChatCompletionMessageParam
from rapidfuzz import fuzz

from optima.errors import ServerError, UsageError
from optima.prompts.rendering import Format, load_formats
from optima.records import write_text
from optima.seeding import derive_seed, digest, rng

N_SHOWN = 6  # formats of the pool that a request shows as examples
N_ASKED = 8  # formats a request asks for
N_WORDS = range(5, 61)
MAX_SIMILARITY = 80.0  # rapidfuzz token_sort_ratio, 0 to 100, from which two formats count as one
REQUESTS_PER_FORMAT = 3
TEMPERATURE = 1.0
MAX_TOKENS = 2000
TIMEOUT_S = 60.0

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.):])\s+")

logger = logging.getLogger(__name__)


def diversify(
    out_dir: Path, *, n: int, model: str, base_url: str, api_key: str, seed: int = 0
) -> tuple[Format, ...]:
    """Write ``n`` new formats into ``out_dir``, one file each, and return them.

    A format is new when it resembles none of the built-in pool, of ``out_dir``, and of this call.
    Raises ServerError when a request fails or when ``REQUESTS_PER_FORMAT * n`` requests were not
    enough; what was found until then stays in ``out_dir``.
    """
    if n < 1:
        raise UsageError(f"n={n}: must be at least 1")
    out_dir.mkdir(parents=True, exist_ok=True)
    known = list(load_formats(out_dir if any(out_dir.glob("*.txt")) else None))
    made: list[Format] = []
    n_requests = REQUESTS_PER_FORMAT * n
    with openai.OpenAI(base_url=base_url, api_key=api_key, timeout=TIMEOUT_S) as client:
        for attempt in range(n_requests):
            draw = rng(seed, "diversify", attempt)
            shown = draw.sample(known, min(N_SHOWN, len(known)))
            reply = _ask(client, model, shown, derive_seed(seed, "diversify", attempt))
            for text in _proposals(reply):
                if _is_near_duplicate(text, known):
                    logger.debug("left out as known: %s", text)
                    continue
                new = Format(f"made-{digest(text, length=8)}", text)
                write_text(out_dir / f"{new.format_id}.txt", f"{text}\n")
                known.append(new)
                made.append(new)
                if len(made) == n:
                    logger.info("%d formats in %d requests: %s", n, attempt + 1, out_dir)
                    return tuple(made)
    raise ServerError(
        f"{base_url}: {model} proposed only {len(made)} new formats of {n} in {n_requests} "
        "requests; ask for fewer, change the seed, or use another model"
    )


def _ask(client: openai.OpenAI, model: str, shown: Sequence[Format], seed: int) -> str:
    """Return the model's reply; connection errors and busy servers are tried again by openai."""
    examples = "\n".join(f"- {example.text}" for example in shown)
    messages: list[ChatCompletionMessageParam] = [
        {
            "role": "user",
            "content": (
                "Two language models solve problems by sending each other messages, and every "
                "token costs. Below are instructions, each of which sets a form for their "
                f"messages.\n\n{examples}\n\nInvent {N_ASKED} more, each a form that none of "
                "these uses. One instruction a line, starting with a hyphen, one to three "
                "sentences, nothing else. Do not mention a certain topic or problem."
            ),
        }
    ]
    try:
        completion = client.chat.completions.create(
            model=model,
            messages=messages,
            seed=seed,
            temperature=TEMPERATURE,
            max_tokens=MAX_TOKENS,
        )
    except openai.OpenAIError as error:
        raise ServerError(
            f"{client.base_url}: {model}: no reply ({type(error).__name__}: {error}); "
            "check the address, the model's name and the key"
        ) from error
    content: object = completion
    with contextlib.suppress(AttributeError, LookupError, TypeError):  # the library checks no types
        content = completion.choices[0].message.content if completion.choices else ""
    if not isinstance(content, str | None):
        raise ServerError(
            f"{client.base_url}: {model}: answered with no chat completion: {content!r:.200}; "
            "check the address"
        )
    return content or ""


def _proposals(reply: str) -> Iterator[str]:
    """Yield the list items of a reply that can be an instruction."""
    for line in _THOUGHTS.sub("", reply).splitlines():
        text, n_bullets = _BULLET.subn("", line)
        text = " ".join(text.split())
        if n_bullets and text.isprintable() and len(text.split()) in N_WORDS:
            yield text


def _is_near_duplicate(text: str, known: Sequence[Format]) -> bool:
    return any(
        fuzz.token_sort_ratio(text.lower(), other.text.lower()) >= MAX_SIMILARITY for other in known
    )
