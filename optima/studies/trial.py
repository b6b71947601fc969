"""A short trial of a model on a recipe: does it converse, and would anything be selected?

The first generation of a run on a few problems of the train split, scored, ranked and selected as
the run would, and nothing trained: of a recipe with a cold start too it is the base model's. Costs
one start of the servers and some minutes.
"""

from dataclasses import dataclass
from pathlib import Path

from optima.evaluation.figures import JudgedConversation
from optima.evaluation.health import Remedies, TalkHealth, examine
from optima.methods import candidate_sampling
from optima.plan import BASE, Iteration
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe
from optima.runs.files import write_trial
from optima.runs.reader import Run
from optima.selection import best_of_each, select_top, share_of
from optima.stages import rank as judge
from optima.stages.generate import generate
from optima.stages.opening import check_models, open_run
from optima.stages.problems import read_problems
from optima.stages.rank import score_where_needed
from optima.stages.select import remedies


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial found: shares, means of the reward's parts, and what would be selected.

    ``shown`` are the first samples of the first problems.
    """

    health: TalkHealth
    remedies: Remedies
    has_cold_start: bool
    n_problems: int
    n_selected: int
    min_share: float
    parts: dict[str, float]
    tokens: float
    generated: float
    turns: float
    shown: tuple[JudgedConversation, ...]

    def advice(self) -> tuple[str, ...]:
        """Return what is bad and which fields to change; empty when all is well."""
        found = list(self.health.advice(self.remedies))
        if not self.n_selected or self.n_selected < share_of(self.min_share, self.n_problems):
            first = "once the above is mended, " if found else ""
            found.append(
                f"{self.n_selected} of {self.n_problems} problems would be selected, and "
                f"select.min_share is {self.min_share}: a run would stop; {first}lower "
                "select.theta, or raise sampling.n_samples"
            )
        return tuple(found)


def try_recipe(
    recipe: Recipe,
    directory: Path,
    *,
    n: int,
    n_shown: int,
    vllm_env: Environment,
    train_env: Environment,
) -> Trial:
    """Hold the conversations of iteration 0 about ``n`` problems and judge them; resumable."""
    recipe = recipe.changed(data={"n_train": n, "n_test": 1})
    check_models(recipe)
    with open_run(recipe, directory, vllm_env=vllm_env, train_env=train_env) as context:
        write_trial(directory, recipe)
        problems = read_problems(context).for_iteration(0)
        step = Iteration("iter_0", BASE, BASE, "sft", 0).step
        team, sampling = context.team(context.base, problems), candidate_sampling(recipe, 0)
        talked = context.do(step("generate"), generate, team, problems, sampling)
        losses = score_where_needed(context, step("score"), talked)
        ranked = context.do(step("rank"), judge.rank, problems, talked, losses)
    judged = list(Run(directory).candidates("iter_0"))
    best = best_of_each(one.reward for one in judged)
    names = ("total", "task", "token", "loss_term")
    return Trial(
        health=examine((one.conversation for one in judged), problems),
        remedies=remedies(context, problems, 0),
        has_cold_start=recipe.cold_start is not None,
        n_problems=len(problems),
        n_selected=len(select_top(best, recipe.select)),
        min_share=recipe.select.min_share,
        parts={name: ranked.metrics[f"reward/{name}"] for name in names},
        tokens=talked.metrics["tokens/conversation"],
        generated=talked.metrics["tokens/generated_conversation"],
        turns=talked.metrics["turns/conversation"],
        shown=tuple(
            one for one in judged if one.conversation.n == 0 and one.problem in problems[:n_shown]
        ),
    )
