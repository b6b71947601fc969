"""``optima-infer`` and ``optima-multi-sc``: models on a task's test problems (paper section 4)."""

from pathlib import Path
from typing import Annotated

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
not count). Score: F1 or accuracy in per cent with its 95 %
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
        words = [
            f"evaluation.n_samples={n_samples}", f"evaluation.temperature={temperature}", *words
        ]  # fmt: skip
    from optima import api
    from optima.reporting.results import (
        results_json,
        stored_results,
        write_consistency,
        write_inference,
    )
    from optima.studies.infer import run_inference

    models = api.read_models(model, model_root, base)
    recipe = api.evaluation_recipe(
        models, config or (), words, task=task, limit=limit, root=model_root
    )
    check_metric(metric, recipe)
    if is_vote and recipe.evaluation.n_samples > 1 and recipe.evaluation.temperature == 0:
        raise UsageError("evaluation.temperature=0: makes all samples equal; raise it")
    recipe = originals.share_threads(num_thread, recipe)
    if output_path:
        place = originals.free_output(place, recipe, "multi_sc" if is_vote else "infer")
    environment = api.find_vllm(vllm_env, recipe)
    with api.output_named():
        rows = run_inference(recipe, models, place, vllm_env=environment, is_grouped=is_vote)
    text = (write_consistency if is_vote else write_inference)(recipe, rows, place)
    print(results_json(stored_results(place)) if as_json else text)
    return 0


infer = Program("optima-infer", translate=originals.translate_infer).add(
    evaluate, text=INFER, epilog=INFER_EXAMPLES, is_vote=False, n_samples=1, temperature=0.0
)
multi_sc = Program("optima-multi-sc", translate=originals.translate_multi_sc).add(
    evaluate, text=SC, epilog=SC_EXAMPLES, is_vote=True
)
