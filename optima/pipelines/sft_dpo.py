"""iSFT-DPO (paper Alg. 3): one iteration of SFT, one of DPO, repeated.

for t = 0, 1, ...:  S_t   = SFT of M_t (information exchange) or M_0 (debate), as in iSFT
                    M_t+1 = DPO of S_t on pairs from trees that S_t grew
"""

from pathlib import Path

from optima.pipelines.dpo import check_pairs, iterate_pairs
from optima.pipelines.evaluate import Evaluations
from optima.pipelines.preflight import check_room
from optima.pipelines.problems import read_problems
from optima.pipelines.run import open_run
from optima.pipelines.sft import cold_start, iterate, starts_from_previous
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe
from optima.reporting.tables import EvaluationRow


def run_sft_dpo_pipeline(
    recipe: Recipe, run_dir: Path, *, vllm_env: Environment, train_env: Environment
) -> tuple[EvaluationRow, ...]:
    """Run or resume a whole iSFT-DPO run in ``run_dir`` and return the figures of its models."""
    with open_run(recipe, run_dir, vllm_env=vllm_env, train_env=train_env) as context:
        problems = read_problems(context)
        check_room(context, problems)
        check_pairs(context, problems)
        evaluations = Evaluations(context, problems.test)
        if recipe.evaluation.base:
            evaluations.add(context.base)
        initial = context.base
        if recipe.cold_start is not None:
            initial = cold_start(context, problems)
            evaluations.add(initial)
        model = initial
        for t in range(recipe.iterations):
            start = model if starts_from_previous(context) else initial
            model = iterate(context, problems, t, (model, start), evaluations, f"iter_{t}_sft")
            evaluations.add(model)
            model = iterate_pairs(context, problems, t, model, evaluations, f"iter_{t}_dpo")
            evaluations.add(model)
        return evaluations.rows()
