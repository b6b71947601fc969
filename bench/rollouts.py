"""How many turns the orchestrator carries: conversations against an instant server.

``taskset -c 0,1 python -m bench.rollouts --model models/smollm2-135m-instruct --n 100000``

The server (``bench.instant``) is a process of its own. Printed: turns per second of whole
conversations (prompts rendered, answers parsed, records made), requests per second of the client
alone in an empty loop over the same prompt, their ratio, the CPU of both, and the peak resident
memory of the orchestrator.
"""

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from optima.conversation.dialogue import Completion, Dialogue, Request, Speaker, hold_conversations
from optima.conversation.loading import load_codec
from optima.processes.devices import free_port
from optima.processes.managed import ManagedProcess
from optima.prompts.rendering import PromptStyle, system_prompt
from optima.recipe.schema import ConversationSection, DataSection, ServingSection
from optima.serving.client import CompletionClient, Server
from optima.serving.probe import is_healthy
from optima.stages.generate import TaskAgreement, rare_collections
from optima.tasks import get_task
from optima.tasks.judging import Judge
from optima.tasks.loading import load_problems
from optima.types import Conversation

NAMES = ("Alice", "Bob")
N_SAMPLES = 10


def dialogues(model: Path, n: int) -> Iterator[Dialogue]:
    """Yield ``n`` dialogues about two-hop problems, ten for each as in a run."""
    task = get_task("two_hop")
    codec = load_codec(str(model))
    agreement = TaskAgreement(task.metric, (), Judge())  # texts need none of its processes
    style = PromptStyle(task.setting, task.answer_style, NAMES)
    section = DataSection(n_train=max(1, n // N_SAMPLES))
    problems = load_problems(task, section, "train", n_agents=2, seed=0).problems
    limits = ConversationSection()
    made = 0
    while made < n:
        for problem in problems:
            speakers = tuple(
                Speaker(
                    agent=agent,
                    name=name,
                    system_prompt=system_prompt(problem, style, agent=agent),
                    codec=codec,
                )
                for agent, name in enumerate(NAMES)
            )
            for _ in range(N_SAMPLES):
                if made == n:
                    return
                yield Dialogue(
                    problem.problem_id, made, speakers, task.answer_style, agreement, limits, 0
                )
                made += 1


async def hold(server: Server, stream: Iterator[Dialogue], concurrency: int) -> tuple[int, int]:
    """Return the number of turns and of conversations that ended in an error."""
    n_turns = n_errors = 0

    def keep(conversation: Conversation) -> None:
        nonlocal n_turns, n_errors
        conversation.model_dump_json()
        n_turns += len(conversation.turns)
        n_errors += conversation.error is not None

    async with CompletionClient([server], "policy", ServingSection()) as client:

        async def generate(request: Request, preferred: object) -> Completion:
            return await client.complete(
                request,
                temperature=0.7,
                top_p=1.0,
                prefer=preferred if isinstance(preferred, Server) else None,
            )

        with rare_collections():
            await hold_conversations(stream, generate, keep, concurrency=lambda: concurrency)
    return n_turns, n_errors


def first_request(model: Path) -> Request:
    """Return the request for the first turn of the first dialogue."""
    speaker = next(dialogues(model, 1)).speakers[0]
    return Request(
        agent=0, prompt_ids=speaker.prompt_ids([]), stop=(), stop_token=speaker.codec.end_token,
        max_tokens=99, seed=0,
    )  # fmt: skip


@contextmanager
def instant_server(model: Path) -> Iterator[Server]:
    """Run a server that answers at once with utterances as the model's token ids."""
    port = free_port()
    process = ManagedProcess(
        [sys.executable, "-m", "bench.instant", "--port", str(port), "--model", str(model)],
        name="instant server",
        log_path=Path(tempfile.mkdtemp()) / "server.log",
    )
    with process:
        server = Server(0, f"http://127.0.0.1:{port}", "key")
        deadline = time.monotonic() + 60
        while not is_healthy(server, 1.0):
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.1)
        yield server


async def ask_only(server: Server, request: Request, n: int, concurrency: int) -> None:
    """Ask ``n`` times for a completion and do nothing with it."""
    seeds = iter(range(n))
    async with CompletionClient([server], "policy", ServingSection()) as client:

        async def work() -> None:
            for seed in seeds:
                await client.complete(replace(request, seed=seed), temperature=0.7, top_p=1.0)

        await asyncio.gather(*(work() for _ in range(concurrency)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--n", type=int, default=100_000, help="conversations")
    parser.add_argument("--concurrency", type=int, default=512)
    options = parser.parse_args()
    with instant_server(options.model) as server:
        request = first_request(options.model)
        n_asked = min(options.n, 20_000)
        started, alone = time.perf_counter(), time.process_time()
        asyncio.run(ask_only(server, request, n_asked, options.concurrency))
        limit = n_asked / (time.perf_counter() - started)
        alone = time.process_time() - alone
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        stream = dialogues(options.model, options.n)
        started, used = time.perf_counter(), time.process_time()
        n_turns, n_errors = asyncio.run(hold(server, stream, options.concurrency))
        seconds, used = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"client alone:   {limit:8,.0f} requests/s, {1e6 * alone / n_asked:,.0f} us of CPU each")
    print(
        f"conversations:  {n_turns / seconds:8,.0f} turns/s = {n_turns / seconds / limit:.2f} of it"
    )
    print(f"orchestrator:   {1e6 * used / n_turns:8,.0f} us of CPU a turn")
    print(f"held:           {options.n:8,} conversations, {n_turns:,} turns, {n_errors} errors")
    print(f"peak memory:    {peak:8,.0f} MiB ({before:,.0f} MiB before)")


if __name__ == "__main__":
    main()
