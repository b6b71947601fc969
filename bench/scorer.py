"""Two ways to the base model's losses: vLLM's ``prompt_logprobs``, and our scoring worker.

    python -m bench.scorer worker --model models/smollm2-135m-instruct --n 512
    python -m bench.scorer vllm --url http://127.0.0.1:8000 --model NAME --n 512   (OPTIMA_API_KEY)

Both score the same generated utterances after the same header, and report texts and scored tokens
a second. The worker's time is that of the second of two equal runs; starting is reported apart.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from random import Random

import aiohttp

from optima.processes.devices import detect_devices
from optima.processes.environment import resolve_environment
from optima.recipe.schema import ModelSection, Recipe, ServingSection
from optima.serving.scorer import LossScorer
from optima.types import ModelRef

HEADER = "<|im_start|>assistant\n"
WORDS = ("the", "lamp", "belongs", "to", "Ines", "who", "lives", "in", "Riga", "so", "I", "think")


def texts(n: int, n_words: int, seed: int) -> list[str]:
    """Return distinct utterances of between half and three halves of ``n_words`` words."""
    random = Random(seed)
    lengths = [random.randint(n_words // 2, n_words * 3 // 2) for _ in range(n)]
    return [
        f"Alice: {k} " + " ".join(random.choice(WORDS) for _ in range(length))
        for k, length in enumerate(lengths)
    ]


def run_worker(options: argparse.Namespace, items: list[tuple[str, str]]) -> tuple[float, float]:
    """Return seconds to start and seconds to score."""
    serving = ServingSection(device=options.device)
    recipe = Recipe(
        method="sft", task="two_hop", model=ModelSection(path=options.model), serving=serving
    )
    with tempfile.TemporaryDirectory() as log_dir:
        start = time.monotonic()
        with LossScorer(
            ModelRef(path=options.model),
            recipe=recipe,
            devices=detect_devices(serving),
            env=resolve_environment(options.train_env, "train"),
            log_dir=Path(log_dir),
        ) as scorer:
            ready_s = time.monotonic() - start
            scorer.losses(items)
            start = time.monotonic()
            scorer.losses(items)
            return ready_s, time.monotonic() - start


async def run_vllm(options: argparse.Namespace, items: list[tuple[str, str]]) -> tuple[float, int]:
    """Return seconds to score and the number of prompt tokens."""
    key = os.environ.get("OPTIMA_API_KEY", "")
    gate = asyncio.Semaphore(options.concurrency)
    connector = aiohttp.TCPConnector(limit=options.concurrency)
    async with aiohttp.ClientSession(
        connector=connector, headers={"Authorization": f"Bearer {key}"}
    ) as session:

        async def one(header: str, text: str) -> int:
            body = {
                "model": options.model,
                "prompt": header + text,
                "max_tokens": 1,
                "prompt_logprobs": 0,
                "add_special_tokens": False,
            }
            async with gate, session.post(f"{options.url}/v1/completions", json=body) as answer:
                answer.raise_for_status()
                return int((await answer.json())["usage"]["prompt_tokens"])

        start = time.monotonic()
        counts = await asyncio.gather(*(one(*item) for item in items))
        return time.monotonic() - start, sum(counts)


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("way", choices=("worker", "vllm"))
    parser.add_argument("--model", required=True, help="directory, or the name the server serves")
    parser.add_argument("--n", type=int, default=512, help="texts")
    parser.add_argument("--words", type=int, default=60, help="mean words of a text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--train-env", default=None)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--concurrency", type=int, default=256)
    options = parser.parse_args()
    items = [(HEADER, text) for text in texts(options.n, options.words, options.seed)]
    result: dict[str, float | str] = {"way": options.way, "n_texts": len(items)}
    if options.way == "worker":
        ready_s, seconds = run_worker(options, items)
        # One token a word and about five for the name, number and punctuation in front.
        n_tokens = sum(len(text.split()) + 3 for _, text in items)
        result["ready_s"] = round(ready_s, 1)
    else:
        seconds, n_tokens = asyncio.run(run_vllm(options, items))
    result["seconds"] = round(seconds, 2)
    result["texts_per_s"] = round(len(items) / seconds, 1)
    result["tokens_per_s"] = round(n_tokens / seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
