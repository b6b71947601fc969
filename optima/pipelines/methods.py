"""The loop of all three methods: evaluate, iterate, and again from the better model.

Which iterations there are, who speaks in them and what is trained says ``optima.plan``; what an
SFT iteration does ``sft`` (paper Alg. 1, 2), and one of DPO ``dpo`` (paper Alg. 3 to 5).
"""

import logging
from pathlib import Path

from optima.errors import UsageError
from optima.evaluation.figures import Figures
from optima.pipelines import dpo, sft
from optima.pipelines.context import Model
from optima.pipelines.evaluate import Evaluations
from optima.pipelines.fit import check_fit, is_trained
from optima.pipelines.problems import read_problems
from optima.pipelines.run import check_room, open_run
from optima.plan import BASE, COLD_START, iterations
from optima.processes.devices import detect_devices
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe

logger = logging.getLogger(__name__)
ITERATE = {"sft": sft.iterate, "dpo": dpo.iterate}


def run_method(
    recipe: Recipe, run_dir: Path, *, vllm_env: Environment, train_env: Environment
) -> tuple[Figures, ...]:
    """Run or resume the recipe's method in ``run_dir``; return its models in the order made.

    Raises UsageError, before there is a directory, for trainings that do not fit the devices.
    """
    check_trainable(recipe)
    if not is_trained(recipe, run_dir):
        for line in check_fit(recipe, detect_devices(recipe.serving), train_env):
            logger.info("%s", line)
    with open_run(recipe, run_dir, vllm_env=vllm_env, train_env=train_env) as context:
        problems = read_problems(context)
        check_room(context, problems)
        if recipe.pairs is not None:
            dpo.check_pairs(context, problems)
        evaluations = Evaluations(context, problems.test)
        models: dict[str, Model] = {BASE: context.base}
        if recipe.evaluation.base:
            evaluations.add(context.base)
        if recipe.cold_start is not None:
            models[COLD_START] = sft.cold_start(context, problems)
            evaluations.add(models[COLD_START])
        for iteration in iterations(recipe):
            model = ITERATE[iteration.training](
                context, problems, iteration, evaluations,
                speaker=models[iteration.speaker], start=models[iteration.start],
            )  # fmt: skip
            models[iteration.label] = model
            evaluations.add(model)
        return evaluations.rows()


def check_trainable(recipe: Recipe) -> None:
    """Raise UsageError for fields that evaluations alone understand."""
    if recipe.model.tokenizer is not None:
        raise UsageError(
            f"model.tokenizer: {recipe.model.tokenizer}: a model is trained with the tokenizer in "
            "its own directory; put it there and leave model.tokenizer out"
        )
