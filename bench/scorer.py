"""How fast base-model losses are: vLLM's prompt log-probabilities against the scoring worker.

    python bench/scorer.py --model models/smollm2-135m-instruct --texts 2000
    OPTIMA_API_KEY=… python bench/scorer.py --model M --server http://127.0.0.1:8000

Without --server only the worker is measured. Starting and loading are not counted. With both,
the largest difference between their losses is printed too.
"""

import argparse
import asyncio
import os
import random
import tempfile
import time
from pathlib import Path

import aiohttp

from optima.conversation.loading import load_codec
from optima.processes.devices import detect_devices
from optima.processes.environment import resolve_environment
from optima.recipe.schema import ModelSection, Recipe, ServingSection
from optima.serving.scorer import Item, LossScorer
from optima.types import ModelRef

WORDS = (
    *("the", "owner", "of", "a", "kite", "lives", "in", "Riga", "and", "says", "that"),
    *("lantern", "clock", "Mara", "Bob", "<A>Graz</A>"),
)


def make_items(model: str, n: int, seed: int) -> list[Item]:
    """Return what R_loss is of, for made-up utterances: header, and text with its end of turn."""
    draw = random.Random(seed)
    codec = load_codec(model)
    header, end = codec.template.assistant_header(), codec.end_text()
    return [
        (header, f"{i} " + " ".join(draw.choices(WORDS, k=draw.randint(5, 150))) + end)
        for i in range(n)
    ]


def count_tokens(model: str, items: list[Item]) -> int:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    texts = [header + text for header, text in items]
    return sum(len(row.ids) for row in tokenizer.encode_batch(texts, add_special_tokens=False))


async def vllm_losses(url: str, model: str, items: list[Item], concurrency: int) -> list[float]:
    """Return the mean loss of each text from prompt log-probabilities."""
    gate = asyncio.Semaphore(concurrency)
    headers = {"Authorization": f"Bearer {os.environ.get('OPTIMA_API_KEY', '')}"}

    async def one(session: aiohttp.ClientSession, item: Item) -> float:
        body = {
            "model": model,
            "prompt": item[0] + item[1],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
            "add_special_tokens": False,
        }
        async with gate, session.post(f"{url}/v1/completions", json=body) as response:
            response.raise_for_status()
            answer = await response.json()
        losses = []
        for entry in answer["choices"][0]["prompt_logprobs"]:
            if entry is not None:  # as it is for the first token
                token = next(iter(entry.values()))
                losses.append((token.get("decoded_token") or "", -token["logprob"]))
        # Texts are ASCII: the tokens of the text are the last ones that spell it.
        n_chars, n_tokens, total = 0, 0, 0.0
        for decoded, loss in reversed(losses):
            if n_chars >= len(item[1]):
                break
            n_chars, n_tokens, total = n_chars + len(decoded), n_tokens + 1, total + loss
        return total / n_tokens

    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector
    ) as session:
        return await asyncio.gather(*(one(session, item) for item in items))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--server", help="base URL of a running vLLM server")
    parser.add_argument("--server-model", help="its model name; default: --model")
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--train-env")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    items = make_items(options.model, options.texts, options.seed)
    serving = ServingSection(device=options.device, scorer_batch_tokens=options.batch_tokens)
    recipe = Recipe(
        method="sft", task="two_hop", model=ModelSection(path=options.model), serving=serving
    )
    served: list[float] | None = None
    n_tokens = count_tokens(options.model, items)
    if options.server:
        started = time.perf_counter()
        name = options.server_model or options.model
        served = asyncio.run(
            vllm_losses(options.server.rstrip("/"), name, items, options.concurrency)
        )
        report("vllm prompt_logprobs", len(items), n_tokens, time.perf_counter() - started)
    with (
        tempfile.TemporaryDirectory() as logs,
        LossScorer(
            ModelRef(path=options.model),
            recipe=recipe,
            devices=detect_devices(serving),
            env=resolve_environment(options.train_env, "train"),
            log_dir=Path(logs),
        ) as scorer,
    ):
        scorer.losses(items[:64])  # kernels and caches
        started = time.perf_counter()
        losses = scorer.losses(items)
        report("scoring worker", len(items), n_tokens, time.perf_counter() - started)
    if served is not None:
        pairs = zip(served, losses, strict=True)
        worst = max(abs(a - b) for a, b in pairs if b is not None)
        print(f"largest difference: {worst:.4f} nats per token")


def report(name: str, n_texts: int, n_tokens: int, seconds: float) -> None:
    print(
        f"{name}: {n_texts} texts in {seconds:.1f} s: {n_texts / seconds:,.0f} texts/s, "
        f"{n_tokens / seconds:,.0f} tokens/s"
    )


if __name__ == "__main__":
    main()
