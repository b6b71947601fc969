"""``optima-infer``: evaluate models on a task's test problems (paper section 4)."""

import argparse
import sys
from collections.abc import Sequence

from optima.cli import evaluating, originals
from optima.cli.configs import RecipeParser
from optima.cli.console import run_command, set_up_logging
from optima.pipelines.infer import run_inference
from optima.reporting.results import write_inference

DESCRIPTION = """\
Serve models one after the other and let each hold one conversation per test problem at temperature
0 (evaluation.n_samples and evaluation.temperature change that). Writes conversations, scores and a
table (text, Markdown, CSV, JSON) to a directory; the same command goes on where it was
interrupted."""
EPILOG = """\
examples:
  optima-infer --model-root runs/sft-quickstart-seed0 --output results/quickstart
  optima-infer --model-root runs/sft-arc-seed0 --task mmlu --output results/arc-to-mmlu \\
    --base meta-llama/Meta-Llama-3-8B-Instruct
  optima-infer --model models/smollm2-135m-instruct --task gsm8k --limit 100 \\
    --output results/base data.path=/data/gsm8k conversation.worked_example=true

What the agents are asked comes from --config, else from the run that trained the models, else from
the defaults; key=value changes a field of it. All test problems are asked unless --limit,
data.n_test or data.first_test says otherwise. Score: F1 or accuracy in per cent with its 95 %
interval (bootstrap over problems); tokens: of what the agents said per conversation, as the paper
counts them (names in, ends of turn out); generated: as the servers count them. Failed
conversations count in full.
The spellings of the original project are accepted too, and mean what they do there: --device N is
the GPUs N to N+3, --num_thread counts the conversations over all servers, and --dataset_type takes
the first 1,000 test problems of hotpot_qa, mwh_qa, trival_qa and cbt (data.first_test)."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = RecipeParser(
        prog="optima-infer", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    evaluating.add_options(parser)
    originals.add_inference_options(parser, n_gpus=4)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = build_parser().parse_intermixed_args(argv)
    set_up_logging()
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    originals.translate_inference(options)
    output = evaluating.check_output(options)
    models = evaluating.read_models(options)
    recipe = originals.share_threads(options, evaluating.read_recipe(options, models))
    output = originals.free_output(options, recipe, output, "infer")
    vllm_env = evaluating.find_vllm(options, recipe)
    with evaluating.output_named():
        rows = run_inference(recipe, models, output, vllm_env=vllm_env)
    print(write_inference(recipe, rows, output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
