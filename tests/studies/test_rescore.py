"""A stored training under other rewards, metrics and selections."""

import json
import shutil
from pathlib import Path

import pytest

import optima
from optima.cli.main import main
from optima.errors import UsageError
from optima.reward import compute_reward
from optima.studies.rescore import rescore
from optima.tasks import get_metric

TRAINING = Path(__file__).parents[1] / "data/runs/training"


def test_nothing_changed_gives_what_the_run_has() -> None:
    run, found = optima.open_run(TRAINING), rescore(TRAINING, [])
    (selection,) = found.selections
    assert selection.before == selection.after
    assert selection.n_common == selection.before.n_chosen == 3
    totals = [one.reward.total or 0.0 for one in run.selected("iter_0_sft")]
    assert selection.before.high == pytest.approx(sum(totals) / 3)
    (pairs,) = found.pairs
    assert pairs.before == pairs.after
    stored = list(run.pairs("iter_0_dpo"))
    assert (pairs.after.n_chosen, pairs.n_common) == (len(stored), len(stored))
    assert pairs.after.high == pytest.approx(sum(p.chosen_value for p in stored) / len(stored))
    # As those of a conversation: label in, end of turn out.
    spoken = [pair.chosen.n_spoken or 0 for pair in stored]
    assert all(n != pair.chosen.n_tokens for n, pair in zip(spoken, stored, strict=True))
    assert pairs.after.tokens == pytest.approx(sum(spoken) / len(spoken))
    for one in found.evaluations:
        assert (one.score_before, one.reward_before) == (one.score_after, one.reward_after)
        rewards = [said.reward.total or 0.0 for said in run.evaluation(one.model)]
        assert one.reward_after == pytest.approx(sum(rewards) / len(rewards))


def test_weights_change_rewards_and_what_is_selected() -> None:
    run = optima.open_run(TRAINING)
    found = rescore(TRAINING, ["reward.lambda_token=0", "search.lambda_loss=0"])
    # R = R_task + lambda_loss / R_loss is left, so the longer of two may be chosen.
    best: dict[str, float] = {}
    losses = run.losses("iter_0_sft/score")
    for one, turns in zip(run.candidates("iter_0_sft"), losses, strict=True):
        section = run.recipe.reward.model_copy(update={"lambda_token": 0.0})
        parts = compute_reward(
            one.conversation, task_score=one.reward.task, normaliser_tokens=1,
            turn_losses=turns.losses, section=section,
        )  # fmt: skip
        if parts.is_eligible and parts.total is not None:
            highest = best.get(one.conversation.problem_id, parts.total)
            best[one.conversation.problem_id] = max(highest, parts.total)
    (selection,) = found.selections
    kept = sorted(best.values(), reverse=True)[: selection.after.n_chosen]
    assert selection.after.high == pytest.approx(sum(kept) / len(kept))
    assert selection.after != selection.before
    # A tree's rollouts are then worth R_task - 0 * R_token: 0 or 1 each.
    (pairs,) = found.pairs
    assert pairs.after.high == 1.0
    assert pairs.after.n_found < pairs.before.n_found


def test_another_selection_takes_others_of_the_same_rewards() -> None:
    (selection,) = rescore(TRAINING, ["select.keep_to=0.2"]).selections
    assert (selection.before.n_chosen, selection.after.n_chosen, selection.n_common) == (3, 1, 1)
    (pairs,) = rescore(TRAINING, ["pairs.theta_diff=5.0"]).pairs
    assert pairs.after.n_chosen == 0
    assert (pairs.after.high, pairs.after.tokens) == (None, None)


def test_another_metric_scores_all_answers_again() -> None:
    run, found = optima.open_run(TRAINING), rescore(TRAINING, [], get_metric("exact_match"))
    metric = get_metric("exact_match")
    for one in found.evaluations:
        said = list(run.evaluation(one.model))
        scores = [
            max(metric.points(c.conversation.answer or "", gold) for gold in c.problem.golds)
            for c in said
        ]
        assert one.score_after == pytest.approx(sum(scores) / len(said))


def test_a_metric_of_another_package_is_named_by_its_place() -> None:
    assert get_metric("optima.tasks.metrics:F1") is get_metric("f1")
    with pytest.raises(UsageError, match="take one of f1, exact_match, math or package"):
        get_metric("bleu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [str(TRAINING), "sampling.n_samples=2"],
            "sampling.n_samples=2: decides what is generated",
        ),
        ([str(TRAINING), "search.n_rounds=2"], "search.n_rounds=2: decides what is generated"),
        ([str(TRAINING), "reward.lambda_tokens=2"], "did you mean lambda_token?"),
        ([str(TRAINING.parent / "inference")], "is an evaluation, which selects nothing"),
        (
            [str(TRAINING), "pairs.strategy=influence"],
            "rescore with pairs.strategy=value or random",
        ),
        ([str(TRAINING), "pairs.path=p.jsonl"], "rescore with pairs.strategy=value or random"),
        (["nowhere"], "nowhere: is not a run directory"),
        ([str(TRAINING), "extra"], "override extra: must be key=value"),
        ([str(TRAINING), "tasks.two_hop.reward.lambda_loss=1"], "or is of another task; change"),
        ([str(TRAINING), "--metric", "bleu"], "metric bleu: take one of"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rescore", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_command_prints_tables_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rescore", str(TRAINING), "reward.lambda_token=0.3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("iter_0_sft")]
    assert [row[1:3] for row in rows] == [["the", "run"], ["the", "change"], ["20.0", "20.0"]]
    assert main(["rescore", str(TRAINING), "reward.lambda_token=0.3", "--json"]) == 0
    found = rescore(TRAINING, ["reward.lambda_token=0.3"]).row()
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))


def test_losses_that_a_run_did_not_take_cannot_be_weighed(tmp_path: Path) -> None:
    run = Path(shutil.copytree(TRAINING, tmp_path / "run"))
    recipe = (run / "recipe.yaml").read_text()
    assert "  lambda_loss: 1.0\n" in recipe
    (run / "recipe.yaml").write_text(recipe.replace("lambda_loss: 1.0", "lambda_loss: 0.0"))
    with pytest.raises(UsageError, match=r"reward\.lambda_loss: .* took no losses"):
        rescore(run, ["reward.lambda_loss=0.5"])
    with pytest.raises(UsageError, match=r"search\.lambda_loss: .* took no losses"):
        rescore(run, ["search.lambda_loss=0.5"])


def test_losses_that_a_rule_left_out_cannot_be_weighed(tmp_path: Path) -> None:
    run = Path(shutil.copytree(TRAINING, tmp_path / "run"))
    recipe = (run / "recipe.yaml").read_text()
    assert "  max_loss_tokens: null\n" in recipe
    (run / "recipe.yaml").write_text(recipe.replace("max_loss_tokens: null", "max_loss_tokens: 30"))
    assert rescore(run, ["reward.max_loss_tokens=20"]).pairs
    for change in ("reward.max_loss_tokens=null", "reward.max_loss_tokens=40"):
        with pytest.raises(UsageError, match="kept no losses of rollouts of over 30 tokens"):
            rescore(run, [change])


def test_pairs_that_took_trainings_are_left_out(tmp_path: Path) -> None:
    run = Path(shutil.copytree(TRAINING, tmp_path / "run"))
    recipe = (run / "recipe.yaml").read_text()
    assert "strategy: value" in recipe
    (run / "recipe.yaml").write_text(recipe.replace("strategy: value", "strategy: influence"))
    found = rescore(run, ["reward.lambda_token=0.3"])
    assert (len(found.selections), found.pairs) == (1, ())
