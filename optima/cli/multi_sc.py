"""``optima-multi-sc``: self-consistency and inference scaling of models (paper section 4)."""

import argparse
import sys
from collections.abc import Sequence

from optima.cli import evaluating, originals
from optima.cli.configs import RecipeParser
from optima.cli.console import run_command, set_up_logging
from optima.cli.numbers import temperature, whole
from optima.errors import UsageError
from optima.pipelines.infer import run_inference
from optima.reporting.results import write_consistency

DESCRIPTION = """\
Sample several conversations per test problem once, and compute for every k up to that number the
score of a vote among k of them, their coverage, and the tokens they cost. Writes conversations,
scores and a table (text, Markdown, CSV, JSON) to a directory; the same command goes on where it was
interrupted."""
EPILOG = """\
examples:
  optima-multi-sc --model runs/sft-gsm8k-seed0/iter_5/train/model --task gsm8k --n-samples 50 \\
    --output results/sc
  optima-multi-sc --model-root runs/sft-quickstart-seed0 --n-samples 8 --output results/scaling

vote: answers that mean the same form a group; the score of the largest one. Where the metric is F1,
answers with a pairwise F1 above 0.9 mean the same; in MATH, equivalent expressions. coverage: the
best score of the k. Both are means over 20 seeded orders of the samples, with 95 % intervals.
What the agents are asked comes from --config, else from the run that trained the models, else from
the defaults. The spellings of the original project are accepted too, and mean what they do there:
--device N is the GPUs N to N+7; the rest as in optima-infer."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = RecipeParser(
        prog="optima-multi-sc", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    evaluating.add_options(parser)
    parser.add_argument(
        "--n-samples",
        metavar="N",
        type=whole(1, 10_000),
        default=50,
        help="samples per problem (default: 50)",
    )
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=temperature,
        default=0.5,
        help="temperature of sampling (default: 0.5)",
    )
    originals.add_inference_options(parser, n_gpus=8, but=("temperature",))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = build_parser().parse_intermixed_args(argv)
    set_up_logging()
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    originals.translate_inference(options)
    output = evaluating.check_output(options)
    if options.n_samples > 1 and options.temperature == 0:
        raise UsageError("--temperature 0: makes all samples equal; raise it")
    options.overrides = [
        f"evaluation.n_samples={options.n_samples}",
        f"evaluation.temperature={options.temperature}",
        *options.overrides,
    ]
    models = evaluating.read_models(options)
    recipe = originals.share_threads(options, evaluating.read_recipe(options, models))
    output = originals.free_output(options, recipe, output, "multi_sc")
    vllm_env = evaluating.find_vllm(options, recipe)
    with evaluating.output_named():
        rows = run_inference(recipe, models, output, vllm_env=vllm_env, is_grouped=True)
    print(write_consistency(recipe, rows, output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
