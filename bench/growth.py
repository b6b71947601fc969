"""What reading a run takes as it grows: seconds and memory by its conversations and trees.

    python -m bench.growth --conversations 10000 100000 1000000 --trees 1000 10000

Makes up runs of one iteration (ten conversations a problem, four turns each, and an evaluation of a
tenth as many) and trees of 24 rollouts in a temporary directory, 1.3 GB for a million conversations
and 1.5 GB for 50,000 trees. Each measurement is a process of its own: seconds of CPU and its peak
resident memory, the interpreter and what it imports included. ``nothing`` is that alone.
"""

import argparse
import dataclasses
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.report import losses_of, make_conversation, make_problem, reward_of
from optima.recipe.layers import Layers
from optima.recipe.loading import build_recipe, dump_recipe
from optima.records import read_records, write_records, write_text
from optima.runs.files import CONVERSATIONS, TREES
from optima.runs.layout import StageDone, file_digest
from optima.types import DialogueTree, Problem, Record, Rollout, TreeNode, TreeRound

N_SAMPLES = 10
N_PATTERNS = 50  # different texts; ids make each record its own
KEY = "train0"  # the id that patterns are made with
STEPS = (
    *("nothing", "status", "read", "figures", "generate", "rank", "select", "rescore", "report"),
    "view",
)
TREE_STEPS = ("pairs", "view")


def lines(kind: Callable[[int], Record], n_problems: int, prefix: str) -> Iterator[str]:
    """Yield a record for each sample of each problem, one of a few patterns under its own id."""
    patterns = [kind(i).model_dump_json() for i in range(N_PATTERNS)]
    for p in range(n_problems):
        for n in range(N_SAMPLES):
            text = patterns[(p * 7 + n * 3) % N_PATTERNS].replace(f'"{KEY}"', f'"{prefix}{p}"', 1)
            yield text.replace('"n":0,', f'"n":{n},', 1) + "\n"


class Maker:
    """Writes the stages of a run."""

    def __init__(self, root: Path, method: str) -> None:
        self.root, self._clock = root, 1e9
        tree = {"method": method, "task": "two_hop", "iterations": 1 if method == "sft" else 2}
        recipe = build_recipe(Layers("bench", {**tree, "model": {"path": "m"}}))
        write_text(root / "recipe.yaml", dump_recipe(recipe))
        write_text(root / "LOCK", "")

    def stage(self, name: str, files: dict[str, Iterator[str]], **metrics: float) -> None:
        """Write the files of a stage and its DONE.json."""
        folder = self.root / name
        folder.mkdir(parents=True)
        for file, content in files.items():
            with (folder / file).open("w") as out:
                out.writelines(content)
        write_text(folder / "INPUTS", "")
        self._clock += 60
        done = StageDone(
            stage=name, inputs="", outputs={file: file_digest(folder / file) for file in files},
            started_unix_s=self._clock, seconds=60.0, metrics=metrics,
        )  # fmt: skip
        write_text(folder / "DONE.json", done.model_dump_json())

    def talk(self, folder: str, part: str, n_problems: int, prefix: str) -> None:
        """Write conversations with their losses and rewards."""
        problem = Problem(problem_id=KEY, task="two_hop", question="", golds=("x y",))
        said = [make_conversation(f"pattern{i}", problem, 0) for i in range(N_PATTERNS)]
        of: dict[str, tuple[str, Callable[[int], Record]]] = {
            part: ("conversations.jsonl", lambda i: said[i]),
            "score": ("losses.jsonl", lambda i: losses_of(said[i])),
            "rank": ("rewards.jsonl", lambda i: reward_of(said[i])),
        }
        for name, (file, kind) in of.items():
            figures = {"reward/total": 0.5, "conversations": float(n_problems * N_SAMPLES)}
            self.stage(f"{folder}/{name}", {file: lines(kind, n_problems, prefix)}, **figures)


def make_problems(maker: Maker, n_train: int, n_test: int) -> None:
    """Write the problems of both splits."""
    pattern = make_problem("train", 0).model_dump_json()

    def split(name: str, n: int) -> Iterator[str]:
        return (pattern.replace(f'"{KEY}"', f'"{name}{p}"', 1) + "\n" for p in range(n))

    files = {"train.jsonl": split("train", n_train), "test.jsonl": split("test", n_test)}
    counts = {"problems/train": float(n_train), "problems/test": float(n_test)}
    maker.stage("problems", files, **counts)


def make_talks(root: Path, n_conversations: int) -> None:
    """Make up a run of an iteration of SFT."""
    n_train = n_conversations // N_SAMPLES
    maker = Maker(root, "sft")
    make_problems(maker, n_train, n_train // 10)
    maker.talk("iter_0", "generate", n_train, "train")
    maker.talk("evaluate/base", "talk", n_train // 10, "test")


def make_tree() -> DialogueTree:
    """Return a tree of eight rounds of three rollouts of four turns."""
    problem = Problem(problem_id=KEY, task="two_hop", question="", golds=("x",))
    nodes, rounds = 0, []
    for r in range(8):
        made, rollouts = [], []
        for k in range(3):
            talk = make_conversation("tree", problem, 3 * r + k)
            parent = 0 if r == 0 else 4 * r - 3
            for turn in talk.turns:
                nodes += 1
                made.append(TreeNode(node_id=nodes, parent=parent, turn=turn))
                parent = nodes
            rollouts.append(
                Rollout(n=3 * r + k, node_id=nodes, stop_reason="agreement", reward=reward_of(talk))
            )
        rounds.append(
            TreeRound(
                problem_id=KEY, number=r, expanded=0 if r == 0 else 4 * r - 3, nodes=tuple(made),
                rollouts=tuple(rollouts), n_merged=0, n_tokens=100,
            )
        )  # fmt: skip
    return DialogueTree(problem_id=KEY, rounds=tuple(rounds))


def make_trees(root: Path, n_trees: int) -> None:
    """Make up a run whose second iteration grew trees."""
    maker = Maker(root, "dpo")
    make_problems(maker, n_trees, n_trees // 10)
    pattern = make_tree().model_dump_json()
    trees = (pattern.replace(f'"{KEY}"', f'"train{t}"') + "\n" for t in range(n_trees))
    maker.stage("iter_1/search", {TREES: trees}, trees=float(n_trees))


def do(step: str, root: Path, out: Path) -> None:
    """Do one step in this process."""
    from optima.runs.reader import Run

    run = Run(root)
    stages: dict[str, Any] = {
        name: SimpleNamespace(path=root / "iter_0" / name, name=name)
        for name in ("generate", "score", "rank")
    }
    stage: Any = SimpleNamespace(path=out, name="iter_0/bench")
    if step == "status":
        from optima.runs.status import read_status

        read_status(root)
    elif step == "read":
        for label in ("iter_0",):
            for judged in run.candidates(label):
                assert judged.reward.n == judged.conversation.n
    elif step == "figures":
        assert run.figures
    elif step in ("generate", "rank", "select"):
        _stage_of_sft(step, run, stage, stages)
    elif step == "rescore":
        from optima.studies.rescore import rescore

        rescore(root, ["reward.lambda_token=0.3"])
    elif step == "report":
        from optima.reporting.report import Limits, write_report

        write_report([root], out / "report", Limits())
    elif step == "view":
        from optima.reporting.report import contents

        content = contents([root])
        assert len(content.archive) or len(content.trees)
    elif step == "pairs":
        from optima.search.pairs import Harvest

        search, pairs = run.recipe.search, run.recipe.pairs
        assert search is not None
        assert pairs is not None
        trees = read_records(root / "iter_1/search" / TREES, DialogueTree)
        write_records(out / "pairs.jsonl", Harvest().gather(trees, search, pairs, seed=0))


def _stage_of_sft(step: str, run: Any, out: Any, stages: dict[str, Any]) -> None:
    from optima.conversation.loading import load_codec
    from optima.prompts.rendering import PromptStyle
    from optima.stages.context import Sampling, speakers_of
    from optima.stages.generate import generate
    from optima.stages.rank import rank
    from optima.stages.select import select
    from optima.tasks import get_task

    problems = tuple(run.problems("train").values())
    task = get_task(run.recipe.task)
    context: Any = SimpleNamespace(recipe=run.recipe, task=task)
    context.style = PromptStyle.of(run.recipe, task)
    if step == "generate":  # a resume of a stage whose conversations are all held
        shutil.copy(stages["generate"].path / CONVERSATIONS, out.path)
        team: Any = SimpleNamespace(model=SimpleNamespace(label="base"))
        out.count_unkept = lambda n: None
        generate(context, out, team, problems, Sampling(N_SAMPLES, 1.0))
        return
    if step == "rank":
        rank(context, out, problems, stages["generate"], stages["score"])
        return
    codec = load_codec("models/smollm2-135m-instruct")
    codecs = (codec,) * len(run.recipe.agents.names)
    context.learners_of = lambda problem: speakers_of(context.style, codecs, problem)
    select(context, out, problems, stages["generate"], stages["rank"], 1)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float
    mib: float


def measured(step: str, root: Path, timeout_s: float) -> Cost | None:
    """Return what a step takes in a process of its own; None when it takes too long."""
    with tempfile.TemporaryDirectory(dir=root.parent) as out:
        argv = [sys.executable, "-m", "bench.growth", "--step", step, "--root", str(root)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            done = subprocess.run(
                [*argv, "--out", out], check=True, stdout=subprocess.PIPE, text=True,
                timeout=timeout_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Cost(seconds, float(done.stdout.split()[-1]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--conversations", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--trees", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--steps", nargs="*", default=[*STEPS, *TREE_STEPS])
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds of one step")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        do(options.step, options.root, options.out)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    for make, what, steps, sizes in (
        (make_talks, "conversations", STEPS, options.conversations),
        (make_trees, "trees", TREE_STEPS, options.trees),
    ):
        for size in sizes:
            with tempfile.TemporaryDirectory() as place:
                root, started = Path(place) / "run", time.monotonic()
                root.mkdir()
                make(root, size)
                held = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
                made_s = time.monotonic() - started
                print(f"{size:,} {what}: {held / 1e6:,.0f} MB, made in {made_s:.0f} s", flush=True)
                for step in (step for step in steps if step in options.steps):
                    cost = measured(step, root, options.timeout)
                    said = (
                        "too long"
                        if cost is None
                        else f"{cost.seconds:8.1f} s {cost.mib:7,.0f} MiB"
                    )
                    print(f"  {step:8} {said}", flush=True)


if __name__ == "__main__":
    main()
