"""``optima-infer`` and ``optima-multi-sc``: models on a task's test problems (paper section 4).

And ``optima chat``, where a person talks as one of the agents.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from optima.cli import originals
from optima.cli.options import (
    MANY,
    AsJson,
    Limit,
    MaybeConfig,
    MetricName,
    ModelRoot,
    OneModel,
    Output,
    Overrides,
    Program,
    TaskName,
    VllmEnv,
    check_metric,
    check_output,
    exclude,
    path,
    temperature,
    whole,
)
from optima.errors import UsageError

if TYPE_CHECKING:
    from optima.conversation.dialogue import Speaker
    from optima.stages.context import Model
    from optima.studies.chat import Held
    from optima.tasks.loading import Split
    from optima.types import Problem, Turn

INFER = """\
Evaluate models on a task's test problems.

Serve models one after the other and let each hold one conversation per test problem at temperature
0 (evaluation.n_samples and evaluation.temperature change that). Writes conversations, scores and a
table (text, Markdown, CSV, JSON) to a directory; the same command goes on where it was
interrupted."""
INFER_EXAMPLES = """\
examples:
  optima-infer --model-root runs/sft-quickstart-seed0 --output results/quickstart
  optima-infer --model-root runs/sft-arc-seed0 --task mmlu --output results/arc-to-mmlu \\
    --base meta-llama/Meta-Llama-3-8B-Instruct
  optima-infer --model models/smollm2-135m-instruct --task gsm8k --limit 100 \\
    --output results/base data.path=/data/gsm8k conversation.worked_example=true

What the agents are asked comes from --config, else from the run that trained the models, else from
the defaults; key=value changes a field of it. All test problems are asked unless --limit,
data.n_test=N among the words, or data.first_test says otherwise (a recipe's own data.n_test does
not count). Of a mixture, without --task, each of its tasks is asked, as by `optima transfer`.
Score: F1 or accuracy in per cent with its 95 %
interval (bootstrap over problems); tokens: of what the agents said per conversation, as the paper
counts them (names in, ends of turn out); generated: as the servers count them. Failed
conversations count in full.

The spellings of the original project are accepted too, and mean what they do there: --device N is
the GPUs N to N+3, --num_thread counts the conversations over all servers, and --dataset_type takes
the first 1,000 test problems of hotpot_qa, mwh_qa, trival_qa and cbt (data.first_test)."""
SC = """\
Vote among several conversations about each test problem.

Sample several conversations per test problem once, and compute for every k up to that number the
score of a vote among k of them, their coverage, and the tokens they cost. Writes conversations,
scores and a table (text, Markdown, CSV, JSON) to a directory; the same command goes on where it
was interrupted."""
SC_EXAMPLES = """\
examples:
  optima-multi-sc --model runs/sft-gsm8k-seed0/iter_5/train/model --task gsm8k --n-samples 50 \\
    --output results/sc
  optima-multi-sc --model-root runs/sft-quickstart-seed0 --n-samples 8 --output results/scaling

vote: answers that mean the same form a group; the score of the largest one. Where the metric is F1,
answers with a pairwise F1 above 0.9 mean the same; in MATH, equivalent expressions. coverage: the
best score of the k. Both are means over 20 seeded orders of the samples, with 95 % intervals.
What the agents are asked comes from --config, else from the run that trained the models, else from
the defaults.

The spellings of the original project are accepted too, and mean what they do there: --device N is
the GPUs N to N+7; the rest as in optima-infer."""

CHAT = """\
examples:
  optima chat runs/sft-quickstart-seed0
  optima chat runs/sft-arc-seed0:iter_1 --as Bob --problem arc-0123456789abcdef
  optima chat models/smollm2-135m-instruct --task gsm8k --index 7 data.path=/data/gsm8k

What the agents are asked comes from --config, else from the run that trained the model, else from
the defaults; key=value changes a field of it, such as evaluation.temperature=0.7. One server is
started, on the first GPU."""

Base = Annotated[
    str | None, typer.Option(metavar="MODEL", help="a model to evaluate before the others")
]
# Spellings of the original project whose meaning shows only when the recipe is read.
NumThread = Annotated[
    int | None, typer.Option("--num_thread", parser=whole(1, MANY, "").parser, hidden=True)
]
OutputPath = Annotated[
    Path | None, path("--output_path", "--output_root_path", help="", hidden=True)
]


def evaluate(
    is_vote: bool,
    overrides: Overrides = None,
    *,
    model_root: ModelRoot = None,
    model: OneModel = None,
    base: Base = None,
    task: TaskName = None,
    metric: MetricName = None,
    config: MaybeConfig = None,
    output: Output = None,
    limit: Limit = None,
    vllm_env: VllmEnv = None,
    n_samples: Annotated[int, whole(1, 10_000, "samples per problem")] = 50,
    temperature: Annotated[float, temperature("temperature of sampling")] = 0.5,
    as_json: AsJson = False,
    num_thread: NumThread = None,
    output_path: OutputPath = None,
) -> int:
    """Ask models the test problems: once as the recipe says, or for votes among samples."""
    exclude(model_root=model_root, model=model)
    place = check_output(output, output_path)
    words = list(overrides or ())
    if is_vote:
        if n_samples > 1 and temperature == 0:
            raise UsageError("--temperature 0: makes all samples equal; raise it")
        own = {"evaluation.n_samples": n_samples, "evaluation.temperature": temperature}
        for word in words:
            key = word.partition("=")[0]
            if key in own:
                option = key.removeprefix("evaluation.").replace("_", "-")
                raise UsageError(f"{word}: says the same as --{option}; give that alone")
            if key == "evaluation":
                raise UsageError(f"{word}: takes back --n-samples; give fields of it one by one")
        words = [*(f"{key}={value}" for key, value in own.items()), *words]
    from optima import api
    from optima.reporting.results import (
        results_json,
        stored_results,
        write_consistency,
        write_inference,
    )
    from optima.studies.infer import run_inference

    models = api.read_models(model, model_root, base)
    if task is None and not is_vote and not output_path:
        tasks = api.tasks_asked(models, config or (), words, root=model_root)
        if tasks:
            return _evaluate_mixture(
                tasks,
                models,
                place,
                words,
                config,
                model_root,
                limit=limit,
                vllm_env=vllm_env,
                as_json=as_json,
            )
    recipe = api.evaluation_recipe(
        models, config or (), words, task=task, limit=limit, root=model_root
    )
    check_metric(metric, recipe)
    recipe = originals.share_threads(num_thread, recipe)
    if output_path:
        place = originals.free_output(place, recipe, "multi_sc" if is_vote else "infer")
    environment = api.find_vllm(vllm_env, recipe)
    with api.output_named():
        rows = run_inference(recipe, models, place, vllm_env=environment, is_grouped=is_vote)
    text = (write_consistency if is_vote else write_inference)(recipe, rows, place)
    print(results_json(stored_results(place)) if as_json else text)
    return 0


def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", show_default=False,
            help="a directory, a hub id, a run's directory for its last model, or RUN:MODEL, such "
            "as runs/sft-arc-seed0:iter_1",
        ),
    ],
    overrides: Overrides = None,
    *,
    seat: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="agent that you are (default: the first)"),
    ] = None,
    task: TaskName = None,
    config: MaybeConfig = None,
    problem: Annotated[
        str | None, typer.Option(metavar="ID", help="the problem's id, in either split")
    ] = None,
    index: Annotated[int, whole(0, MANY, "number of the problem in its split, from 0")] = 0,
    split: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="test or train (default: test)")
    ] = None,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="show what your partners are told, too")
    ] = False,
    output: Annotated[
        Path | None,
        path(metavar="FILE", help="add the conversations to it, a line each as runs store them"),
    ] = None,
    vllm_env: VllmEnv = None,
) -> int:  # fmt: skip
    """Talk with a model as one of the agents.

    Serve a model and hold conversations with it by the prompts, roles, cues and stop rules of the
    recipe: you say what one agent says, a line an utterance, and the model is the others. You are
    shown what your agent is told, and at the end the gold, the score and the tokens. Lines come
    from standard input. Ctrl-D or Ctrl-C ends it, and the server with it.
    """
    from optima import api
    from optima.records import RecordAppender, check_holds
    from optima.runs.comparison import split_name
    from optima.runs.files import RECIPE
    from optima.studies import chat as talk
    from optima.types import Conversation

    if problem is not None and index:
        raise UsageError("--index: cannot stand beside --problem; give one of them")
    models = api.read_models(model, None)
    place = Path(split_name(model, "MODEL")[0])
    root = place if (place / RECIPE).is_file() else None
    recipe = api.evaluation_recipe(models, config or (), overrides or (), task=task, root=root)
    agent = talk.seat_of(recipe, seat)
    problems = talk.find_problems(recipe, _split(split), problem, index)
    if output is not None:
        check_holds(output, Conversation, "--output")
    environment = api.find_vllm(vllm_env, recipe)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(KeyboardInterrupt, EOFError))
        kept = stack.enter_context(RecordAppender(output)) if output is not None else None
        taken = stack.enter_context(talk.seat(recipe, models[0], agent, vllm_env=environment))
        say, show = partial(_line, recipe.agents.names[agent]), _show(agent)
        for n, one in enumerate(problems):
            if n:
                _read("\nEnter: the next problem; Ctrl-D: the end. ")
                print("" if sys.stdin.isatty() else "\n", end="")
            print(_told(one, taken.speakers(one), agent, is_revealed=reveal), flush=True)
            try:
                held = taken.converse(one, say, show)
            except EOFError:
                print(f"\n--- left before its end\ngold: {' | '.join(one.golds)}")
                break
            print(_outcome(held), flush=True)
            if kept is not None:
                kept.append(held.conversation)
    return 0


def _split(text: str | None) -> "Split | None":
    from optima.tasks.loading import Split

    if text is not None and text not in get_args(Split):
        raise UsageError(f"--split {text}: must be test or train")
    return cast("Split | None", text)


def _read(prompt: str) -> str:
    """Return a line of standard input; EOFError at its end."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # lines can then be edited
    try:
        return input(prompt)
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input: is not UTF-8 ({error}); save it as UTF-8") from error


def _line(name: str) -> str:
    """Return what a person says as an agent: the next line that is not empty."""
    is_typed = sys.stdin.isatty()  # where the line is then seen already
    while not (said := _read(f"{name}: " if is_typed else "").strip()):
        pass
    if not is_typed:
        print(f"{name}: {said}", flush=True)
    return said


def _show(agent: int) -> "Callable[[Turn], None]":
    """Return what prints the utterances of the others, and what was left of one's own."""

    def show(turn: "Turn") -> None:
        if turn.agent != agent:
            print(f"{turn.name}:{turn.text}", flush=True)
        elif turn.finish_reason == "label":
            print(f"(cut where a speaker's label begins: {turn.name}:{turn.text})", flush=True)

    return show


def _told(
    problem: "Problem", speakers: "Sequence[Speaker]", agent: int, *, is_revealed: bool
) -> str:
    """Return what a person is shown of a problem before the first utterance."""
    lines = [f"{problem.problem_id}: you are {speakers[agent].name}"]
    for speaker in speakers:
        if speaker.agent == agent or is_revealed:
            lines += [f"--- what {speaker.name} is told", speaker.system_prompt]
            if speaker.cue and speaker.codec.template.roles != "assistant":
                lines += ["--- and after what it hears", speaker.cue]
    return "\n".join([*lines, "---"])


def _outcome(held: "Held") -> str:
    """Return how a conversation ended, its answer and the gold, its score and tokens."""
    talk, parts = held.conversation, held.reward
    turns = ", ".join(f"{turn.name} {turn.n_counted}" for turn in talk.turns)
    cost = (
        f"{parts.token:.2f} of the first model's {held.yardstick} tokens"
        if held.yardstick
        else "not known, as no run has asked its first model this"
    )
    faults = f" ({', '.join(talk.faults)})" if talk.faults else ""
    lines = [
        f"--- {talk.stop_reason}{faults} after {len(talk.turns)} turns",
        talk.error or "",
        f"answer: {talk.answer}",
        f"gold: {' | '.join(held.problem.golds)}",
        f"no score: {parts.error}" if parts.error else f"score: {100 * parts.task:.0f}",
        f"tokens: {talk.n_tokens} ({turns})",
        f"reward without R_loss: R_task {parts.task:.2f}, R_token {cost}",
    ]
    return "\n".join(filter(None, lines))


def _evaluate_mixture(
    tasks: Sequence[str], models: "Sequence[Model]", place: Path, words: Sequence[str],
    config: list[Path] | None, root: Path | None, *, limit: int | None, vllm_env: str | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Ask models the test problems of each task of a mixture, as a transfer does."""
    from optima import api
    from optima.reporting.results import results_json, stored_results, write_transfer
    from optima.studies.infer import run_transfer

    recipes = {
        name: api.evaluation_recipe(models, config or (), words, task=name, limit=limit, root=root)
        for name in tasks
    }
    environment = api.find_vllm(vllm_env, next(iter(recipes.values())))
    with api.output_named():
        rows = run_transfer(recipes, models, place, vllm_env=environment)
    text = write_transfer(recipes, rows, place)
    print(results_json(stored_results(place)) if as_json else text)
    return 0


infer = Program("optima-infer", translate=originals.translate_infer).add(
    evaluate, text=INFER, epilog=INFER_EXAMPLES, is_vote=False, n_samples=1, temperature=0.0
)
multi_sc = Program("optima-multi-sc", translate=originals.translate_multi_sc).add(
    evaluate, text=SC, epilog=SC_EXAMPLES, is_vote=True
)
