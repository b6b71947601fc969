"""Who takes how much of the device."""

from optima.recipe.schema import (
    DpoSection,
    ModelSection,
    PairSection,
    Recipe,
    RewardSection,
    SearchSection,
)
from optima.stages.context import serving_recipe


def _recipe(lambda_loss: float, search: float | None, **section: int) -> Recipe:
    return Recipe(
        method="dpo", task="arc", model=ModelSection(path="m"), pairs=PairSection(),
        dpo=DpoSection(), reward=RewardSection(lambda_loss=lambda_loss),
        search=SearchSection(lambda_loss=search, **section),
    )  # fmt: skip


def test_servers_leave_memory_to_a_scorer_wherever_the_recipe_takes_losses() -> None:
    def share(recipe: Recipe) -> float:
        return serving_recipe(recipe).serving.gpu_memory_utilization

    assert share(_recipe(1.0, None)) == 0.7
    assert share(_recipe(0.0, 1.0)) == 0.7  # only trees need losses
    assert share(_recipe(1.0, 0.0)) == 0.7  # only the evaluations do
    assert share(_recipe(0.0, None)) == 0.9
    assert share(_recipe(1.0, None, scorer_gpus=1)) == 0.9
