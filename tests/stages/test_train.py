"""What is said before a training."""

from optima.recipe.schema import DpoSection, TrainSection
from optima.stages.train import count_steps, explain_few_steps


def test_training_of_few_steps_is_told_with_the_fields_that_make_more() -> None:
    section = DpoSection(batch_size=64, epochs=1.0)
    assert count_steps(section, 124) == 2
    assert explain_few_steps(section, 124) == (
        "so few steps change a model little; lower dpo.batch_size (it is 64) or raise dpo.epochs "
        "(it is 1)"
    )
    healed = section.model_copy(update={"batch_size": 16})
    assert count_steps(healed, 124) == 8
    assert explain_few_steps(healed, 124) is None


def test_steps_count_the_last_batch_and_every_epoch() -> None:
    section = TrainSection(batch_size=32, epochs=2.0)
    assert count_steps(section, 33) == 4
    assert "train.epochs" in str(explain_few_steps(section, 33))
    assert "cold_start.epochs" in str(explain_few_steps(section, 33, is_cold=True))
