"""``optima status``, ``optima report`` and ``optima view``: what runs have come to."""

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from optima.cli.options import MANY, AsJson, OfMixture, Overrides, TrainEnv, path, paths, whole
from optima.errors import UsageError

ROWS = """\
examples:
  optima rows runs/sft-arc-seed0 --n 3
  optima rows runs/sft-arc-seed0:iter_0 --first 10 --json
  optima rows runs/sft-arc-seed0:iter_0 --losses runs/sft-arc-seed0:base"""
STATUS = """\
examples:
  optima status runs/sft-quickstart-seed0
  optima status runs/ablations"""
REPORT = """\
examples:
  optima report runs/sft-quickstart-seed0
  optima report runs/sft-arc-seed0 runs/dpo-arc-seed0 results/arc --output reports/arc"""
VIEW = """\
examples:
  optima view runs/sft-quickstart-seed0
from a GPU node, forward the port: ssh -L 8700:127.0.0.1:8700 NODE, and here --port 8700"""

EXPORT = """\
examples:
  optima export runs/sft-arc-seed0:base --output logs
  optima export runs/sft-arc-seed0 --output logs
  inspect view --log-dir logs"""

_OF_LOSSES = ("serving.", "model.dtype=", "model.trust_remote_code=")
Runs = Annotated[list[Path], paths("directory of a run, or of several")]


def status(
    run: Annotated[Path, paths("directory of a run, an evaluation, or several")],
    *,
    as_json: AsJson = False,
) -> int:
    """Say where a run stands.

    Say which stage a run or an evaluation is in, how far, and when it will be done: an estimate
    from the stages of the same kind that are done. While it has servers: how many are alive, of
    which model, and where the logs are. Of a folder of several (a sweep, ablations, a transfer)
    each is said, and when the last will be done. Exit status 1 if it stopped before its end, or a
    run of it is damaged.
    """
    from optima.runs.status import folder_text, read_folder, read_status, status_text

    members = read_folder(run)
    if members is not None:
        if as_json:
            print(json.dumps([one.record() for one in members]))
        else:
            print(folder_text(run, members))
        states = {member.state for member in members}
        has_stopped = "running" not in states and not states <= {"done"}
        return 1 if has_stopped or "damaged" in states else 0
    found = read_status(run)
    print(json.dumps(found.record()) if as_json else status_text(run, found))
    return 1 if found.state == "stopped" else 0


def report(
    runs: Runs,
    *,
    output: Annotated[
        Path | None, path(help="where to write it (default: report in the first RUN)")
    ] = None,
    max_conversations: Annotated[
        int,
        whole(1, MANY, "conversations in the page; of larger runs a seeded sample of the problems"),
    ] = 100_000,
    max_trees: Annotated[int, whole(1, MANY, "trees of each search in the page")] = 200,
) -> int:
    """Write runs as a page to read, with tables and figures.

    Write one self-contained page of HTML about trainings, inferences, sweeps or transfers:
    figures, tables, every conversation and dialogue tree. It opens from disk and loads nothing. The
    tables are also written as Markdown and CSV, the figures as PNG and SVG. Runs are only read, and
    may be going on.
    """
    from optima.reporting.report import Limits, write_report

    limits = Limits(max_conversations, max_trees)
    print(write_report(runs, output or runs[0] / "report", limits))
    return 0


def view(
    runs: Runs, *, port: Annotated[int, whole(0, 65535, "port to listen at (0: a free one)")] = 0
) -> int:
    """Serve the report of runs live, on this machine only.

    Serve the page of `optima report` at 127.0.0.1 while runs are going on, with the progress of the
    current stage. The address holds a random key. Ends with Ctrl-C; the runs go on.
    """
    from optima.processes import interruption
    from optima.reporting.live import serve

    def announce(address: str) -> None:
        print(f"{address}\nCtrl-C ends it; the runs go on.", flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        interruption.run(serve(runs, port, announce))
    return 0


def rows(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN[:MODEL]", show_default=False,
            help="directory of a training, and one of the models it made (default: its last)",
        ),
    ],
    overrides: Overrides = None,
    *,
    first: Annotated[int, whole(0, MANY, "number of the first row shown, from 0")] = 0,
    n: Annotated[int, whole(1, MANY, "rows shown")] = 1,
    losses: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="show each trained token's loss under this model: a directory, a hub id, a run's "
            "directory for its last model, or RUN:MODEL",
        ),
    ] = None,
    train_env: TrainEnv = None,
    as_json: AsJson = False,
) -> int:  # fmt: skip
    """Show what a model was trained on, token by token.

    Print rows of a model's training as the model sees them, special tokens included. What carries
    loss stands in double brackets with a dot between its tokens; all else only conditions it.
    Of a preference training each row is shown twice, with the chosen and the rejected utterance.
    With --losses each of these tokens is followed by its loss, in nats: what the model thought of
    it, such as before and after the training. key=value changes how that is computed, such as
    serving.device=cpu or model.dtype=float32.
    """
    from optima.reporting.rows import add_losses, check_tokens, read_rows
    from optima.runs.comparison import find_trained
    from optima.stages.opening import base_model, codecs_of

    if losses is None and overrides:
        raise UsageError(
            f"{overrides[0]}: is not expected here, where no loss is computed; name --losses MODEL"
        )
    if unread := [one for one in overrides or () if not one.startswith(_OF_LOSSES)]:
        raise UsageError(
            f"{unread[0]}: changes no loss; change fields of serving, or model.dtype or "
            "model.trust_remote_code"
        )
    made, label = find_trained(run)
    codecs = codecs_of(made.recipe, base_model(made.recipe))
    names = made.recipe.agents.names
    encoders = {name: codec.encoder for name, codec in zip(names, codecs, strict=True)}
    found = read_rows(made, label, first, n, encoders)
    if losses is not None:
        from optima.conversation.loading import ModelFiles, load_encoder
        from optima.processes.environment import require_environment
        from optima.recipe.loading import load_recipe
        from optima.runs.files import RECIPE
        from optima.studies.infer import name_model
        from optima.types import TeamRef

        model = name_model(losses, "model").ref
        if isinstance(model, TeamRef):
            raise UsageError(
                f"--losses {losses}: is a team of {', '.join(model.member_by_policy)}; name the "
                "folder of one, such as iter_0/train_NAME/model"
            )
        recipe = load_recipe(made.root / RECIPE, overrides or ())
        other = load_encoder(ModelFiles(model.path, field="--losses"))
        check_tokens(found, encoders, other, losses)
        env = require_environment(train_env, "train")
        found = add_losses(found, model, recipe, train_env=env)
    if as_json:
        print(json.dumps([row.record() for row in found], ensure_ascii=False))
    else:
        print("\n\n".join(row.text() for row in found))
    return 0


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN[:MODEL]", show_default=False,
            help="directory of a run or an inference, and one of its models (default: its last)",
        ),
    ],
    *,
    output: Annotated[Path, path(help="folder of logs, in which it gets a file")],
    task: OfMixture = None,
) -> int:  # fmt: skip
    """Write a model's conversations as a log for `inspect view`.

    The log has what each agent was told, every utterance, the answer and its score, and the tokens
    of each conversation (format: EvalLog of inspect_ai).
    """
    from optima.records import make_folder, write_text
    from optima.reporting.inspect_log import file_name, inspect_log
    from optima.runs.comparison import find_evaluated, open_task

    whole, label = find_evaluated(run)
    made = open_task(whole.root, task)
    log = inspect_log(made, label)
    make_folder(output, "--output")
    file = output / file_name(log)
    write_text(file, json.dumps(log, ensure_ascii=False))
    print(f"{len(log['samples'])} conversations: {file}")
    return 0
