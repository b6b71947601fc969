"""How many turns the orchestrator carries while trees grow, against an instant server.

``taskset -c 0,1 python -m bench.trees --model models/smollm2-135m-instruct --n 2000``

The server is a process of its own, losses are instant numbers: what is measured is everything else,
prompts, tree, merging, eligibility, judging, rewards and records. Printed: requests per second of
the client alone in an empty loop, turns and rounds per second of growing trees, CPU per turn, nodes
per tree, and the peak resident memory of the orchestrator.
"""

import argparse
import asyncio
import random
import resource
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.rollouts import ask_only, dialogues, first_request, instant_server
from optima.conversation.dialogue import Completion, Dialogue, Request
from optima.recipe.schema import DataSection, RewardSection, SearchSection, ServingSection
from optima.search.tree import Forest
from optima.serving.client import CompletionClient, Server
from optima.stages.generate import rare_collections
from optima.stages.rank import RewardDesk, Yardstick
from optima.tasks import get_task
from optima.tasks.loading import load_problems
from optima.tasks.metrics import F1
from optima.types import TreeRound

NORMALISER_TOKENS = 200
N_ASKED = 5_000
WORDS = ("so", "the", "lamp", "Ada", "gave", "is", "in", "Riga", "or", "Lyon", "we", "both", "know")


def losses(texts: list[str]) -> list[float | None]:
    """Return a number per text, as a scorer would."""
    return [1.0 + len(text) % 7 / 3 if text else None for text in texts]


def one_per_problem(model: Path, n: int) -> Iterator[Dialogue]:
    """Yield one dialogue about each of ``n`` problems."""
    seen = ""
    for dialogue in dialogues(model, 10 * n):
        if dialogue.problem_id != seen:
            seen = dialogue.problem_id
            yield replace(dialogue, n=0)


async def grow(server: Server, model: Path, n: int, concurrency: int, n_words: int) -> Counter[str]:
    """Return the counts of what grew."""
    problems = load_problems(
        get_task("two_hop"), DataSection(n_train=n), "train", n_agents=2, seed=0
    ).problems
    section = SearchSection(concurrency=concurrency)
    counts: Counter[str] = Counter()

    def keep(finished: TreeRound) -> None:
        finished.model_dump_json()
        counts["rounds"] += 1
        counts["nodes"] += len(finished.nodes)
        counts["turns"] += len(finished.nodes) + finished.n_merged
        counts["errors"] += sum(rollout.reward.total is None for rollout in finished.rollouts)

    yardstick = Yardstick(F1, RewardSection(), NORMALISER_TOKENS, losses)
    with RewardDesk(problems, yardstick) as desk, rare_collections():
        async with CompletionClient(
            [server], "policy", ServingSection(), concurrency * section.n_rollouts
        ) as client:

            async def generate(request: Request, _: object) -> Completion:
                completion = await client.complete(request, temperature=0.7, top_p=1.0)
                if not n_words:
                    return completion
                more = random.Random(request.seed).choices(WORDS, k=n_words)
                text = f"{' '.join(more)} {completion.text}"
                return replace(completion, text=text, token_ids=None)

            forest = Forest(section, generate, desk.rewards_for, keep, lambda: concurrency)
            await forest.grow(one_per_problem(model, n), {})
    return counts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--n", type=int, default=2000, help="trees")
    parser.add_argument("--concurrency", type=int, default=2000, help="trees at once")
    parser.add_argument("--words", type=int, default=0, help="random words added to an utterance")
    options = parser.parse_args()
    with instant_server(options.model) as server:
        request = first_request(options.model)
        started = time.perf_counter()
        asyncio.run(ask_only(server, request, N_ASKED, 512))
        limit = N_ASKED / (time.perf_counter() - started)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started, used = time.perf_counter(), time.process_time()
        counts = asyncio.run(
            grow(server, options.model, options.n, options.concurrency, options.words)
        )
        seconds, used = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    n_turns = counts["turns"]
    rate = n_turns / seconds
    print(f"client alone:  {limit:8,.0f} requests/s (empty loop)")
    print(f"turns:         {rate:8,.0f} a second = {rate / limit:.2f} of it, {n_turns:,}")
    print(f"rounds:        {counts['rounds'] / seconds:8,.0f} a second, {counts['rounds']:,}")
    print(f"orchestrator:  {1e6 * used / n_turns:8,.0f} us of CPU a turn")
    print(f"trees:         {options.n:8,}, {counts['nodes'] / options.n:.1f} nodes each")
    print(f"unrewarded:    {counts['errors']:8,}")
    print(f"peak memory:   {peak:8,.0f} MiB ({before:,.0f} MiB before)")


if __name__ == "__main__":
    main()
