"""How long the report of a large run takes to write, and its page to open in a browser.

    python -m bench.report --conversations 100000

Makes up a run of three iterations with conversations of two to six turns, writes its report, opens
the page from disk in headless Chromium, reads a conversation and searches everything said. Prints
seconds; needs chromium and chromedriver.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from optima.recipe.layers import Layers
from optima.recipe.loading import build_recipe, dump_recipe
from optima.records import write_records, write_text
from optima.reporting.report import Limits, write_report
from optima.runs.layout import StageDone
from optima.seeding import rng
from optima.types import Conversation, Problem, RewardParts, Turn, TurnLosses
from tests.reporting.browser import Page, chromium

N_SAMPLES = 8
N_ITERATIONS = 3
WORDS = (
    *("the", "owner", "of", "a", "red", "kite", "lives", "in", "Riga", "and", "says", "that", "it"),
    *("was", "told", "about", "clocks", "lanterns", "who", "which", "river", "mountain", "film"),
    *("director", "born", "year", "city", "band", "album"),
)


def text(seed: str, n: int) -> str:
    return " ".join(rng(0, seed).choices(WORDS, k=n))


def make_problem(split: str, i: int) -> Problem:
    key = f"{split}{i}"
    return Problem(
        problem_id=key, task="two_hop", question=text(key, 14) + "?", golds=(text(key, 2),),
        contexts=(text(f"{key}a", 200), text(f"{key}b", 200)),
    )  # fmt: skip


def make_conversation(stage: str, problem: Problem, n: int) -> Conversation:
    draw = rng(0, stage, problem.problem_id, n)
    turns = tuple(
        Turn(
            agent=t % 2, name=("Alice", "Bob")[t % 2], answer=None, n_prompt_tokens=700,
            text=" ".join(draw.choices(WORDS, k=draw.randint(8, 40))), finish_reason="stop",
            n_tokens=draw.randint(9, 60), seconds=0.5,
        )
        for t in range(draw.randint(2, 6))
    )  # fmt: skip
    return Conversation(
        problem_id=problem.problem_id, n=n, format_id=None, turns=turns, stop_reason="agreement",
        answer=text(problem.problem_id, 2),
    )  # fmt: skip


def reward_of(c: Conversation) -> RewardParts:
    return RewardParts(
        problem_id=c.problem_id, n=c.n, task=float(c.n_tokens % 2), token=0.4, loss=2.0,
        loss_term=0.5, total=0.26 + c.n_tokens % 2, n_tokens=c.n_tokens, is_eligible=True,
    )  # fmt: skip


def losses_of(c: Conversation) -> TurnLosses:
    return TurnLosses(problem_id=c.problem_id, n=c.n, losses=(2.0,) * len(c.turns))


class Maker:
    """Writes stages with made-up conversations."""

    def __init__(self, root: Path) -> None:
        self.root, self._clock = root, 1e9
        recipe = build_recipe(
            Layers("bench", {"method": "sft", "task": "two_hop", "model": {"path": "m"}})
        )
        write_text(root / "recipe.yaml", dump_recipe(recipe))

    def talk(self, folder: str, name: str, problems: list[Problem], n_samples: int) -> None:
        def conversations() -> Iterator[Conversation]:
            return (
                make_conversation(folder, problem, n)
                for problem in problems
                for n in range(n_samples)
            )

        n = len(problems) * n_samples
        metrics = {
            name: {"conversations": n, "tokens/generated": 130.0 * n, "stop/agreement": 1.0},
            "score": {"loss/texts": 4.0 * n},
            "rank": {"reward/total": 0.76, "reward/task": 0.5},
        }
        for part in metrics:
            (self.root / folder / part).mkdir(parents=True)
        write_records(self.root / folder / name / "conversations.jsonl", conversations())
        write_records(self.root / folder / "rank/rewards.jsonl", map(reward_of, conversations()))
        write_records(self.root / folder / "score/losses.jsonl", map(losses_of, conversations()))
        for part, figures in metrics.items():
            self._clock += 1
            done = StageDone(
                stage=f"{folder}/{part}", inputs="", outputs={}, started_unix_s=self._clock,
                seconds=60.0, metrics={key: float(value) for key, value in figures.items()},
            )  # fmt: skip
            write_text(self.root / folder / part / "INPUTS", "")
            write_text(self.root / folder / part / "DONE.json", done.model_dump_json())


def make_run(root: Path, n_conversations: int) -> None:
    n_train = n_conversations // (N_ITERATIONS * N_SAMPLES + (N_ITERATIONS + 1) // 2)
    splits = {
        split: [make_problem(split, i) for i in range(n)]
        for split, n in (("train", n_train), ("test", n_train // 4))
    }
    (root / "problems").mkdir(parents=True)
    for split, problems in splits.items():
        write_records(root / "problems" / f"{split}.jsonl", problems)
    maker = Maker(root)
    maker.talk("evaluate/base", "talk", splits["test"], 1)
    for t in range(N_ITERATIONS):
        maker.talk(f"iter_{t}", "generate", splits["train"], N_SAMPLES)
        maker.talk(f"evaluate/iter_{t}", "talk", splits["test"], 1)


def seconds_of(page: Page, action: Callable[[], object], is_done: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    page.wait(is_done, "the page")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--conversations", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        make_run(run, options.conversations)
        started = time.perf_counter()
        path = write_report([run], Path(place) / "report", Limits(n_conversations=10**9))
        print(
            f"written in {time.perf_counter() - started:.1f} s, {path.stat().st_size / 1e6:.1f} MB"
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"peak memory of the process that made and wrote it: {peak:.0f} MiB")
        with chromium() as page:
            for anchor, selector in (("", "#table-models"), ("#conversations", ".line")):
                opened = seconds_of(
                    page,
                    lambda anchor=anchor: page.open(path, anchor),  # type: ignore[misc]
                    lambda selector=selector: page.count(selector),  # type: ignore[misc]
                )
                print(f"opened {anchor or '#overview'}: {opened:.2f} s")
            print(f"conversations listed: {page.run('return data.n'):,}")
            read = seconds_of(
                page, lambda: page.click(".line"), lambda: page.count("#reader .turn")
            )
            print(f"a conversation read: {read:.2f} s")
            searched = seconds_of(
                page,
                lambda: page.choose("f-q", "riga and says that"),
                lambda: (
                    page.run("return view.matches !== null")
                    and page.count("#search-progress[hidden]")
                ),
            )
            print(f"everything searched: {searched:.2f} s")


if __name__ == "__main__":
    main()
