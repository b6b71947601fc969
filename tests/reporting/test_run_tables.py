"""Tables of a report, their arithmetic, and one of them as a golden file."""

from pathlib import Path

import pytest

from optima.records import write_records
from optima.reporting.report import Limits, tables_of, write_report
from optima.reporting.tables import Table, write_tables
from optima.runs.comparison import open_runs
from optima.runs.reader import Run, open_run
from tests.reporting import made

GOLDEN = Path(__file__).parent / "golden"


def _tables(*runs: Path) -> dict[str, Table]:
    return {table.name: table for table in tables_of(open_runs(runs))}


def _cell(table: Table, line: str, column: str) -> str:
    """Return a cell by its column's first title and its line's last word."""
    head = table.head
    places = [row for row in table.rows if line in row[: table.n_left]]
    return places[0][head.index(column)]


def test_training_has_its_tables(tmp_path: Path) -> None:
    tables = _tables(made.training(tmp_path / "run"))
    assert list(tables) == ["models", "differences", "rewards", "stop-reasons", "cost"]


def test_models_have_score_tokens_reward_and_the_time_they_took(tmp_path: Path) -> None:
    models = _tables(made.training(tmp_path / "run"))["models"]
    assert _cell(models, "base", "score") == "25.0"
    assert _cell(models, "base", "tokens") == "250.0"
    assert _cell(models, "base", "median") == "250"
    assert _cell(models, "base", "p95") == "385"  # 300 + 0.85 * (400 - 300)
    assert _cell(models, "iter_0", "made in") == "80 s"
    assert _cell(models, "base", "made in") == ""
    assert "samples" not in models.head
    assert "task" not in models.head


def test_differences_are_of_the_same_problems(tmp_path: Path) -> None:
    differences = _tables(made.training(tmp_path / "run"))["differences"]
    row = next(row for row in differences.rows if row[0] == "iter_0")
    # base 0 0 1 0, iter_0 1 0 1 0: one of four is gained; tokens are halved on each
    assert row[3].startswith("+25.0 (")
    assert row[5].startswith("-125.0 (")
    assert row[5].endswith("*")
    assert row[-1] == "4"


def test_cost_says_when_the_tokens_saved_repay_those_spent(tmp_path: Path) -> None:
    cost = _tables(made.training(tmp_path / "run"))["cost"]
    assert _cell(cost, "iter_0", "tokens generated") == "1,000"
    assert _cell(cost, "iter_0", "tokens trained") == "2,000"
    assert _cell(cost, "iter_0", "repaid after") == "24"  # 3000 / (250 - 125)


def test_cost_of_a_model_that_is_not_evaluated_yet_is_known(tmp_path: Path) -> None:
    run = made.Maker(tmp_path / "run")
    run.iteration("iter_0", reward=0.5, n_generated=100, seconds=8)
    tables = _tables(run.root)
    assert _cell(tables["cost"], "iter_0", "tokens trained") == "200"
    assert _cell(tables["cost"], "iter_0", "repaid after") == ""
    assert "models" not in tables


def test_runs_of_other_problems_have_no_differences(tmp_path: Path) -> None:
    made.transfer(tmp_path / "out")
    one = made.Maker(tmp_path / "one", task="gsm8k")
    one.model("model", [1.0], [10])
    for path in (tmp_path / "one").rglob("*.jsonl"):
        path.write_text(path.read_text().replace('"p0"', '"other"'))
    tables = _tables(tmp_path / "one", tmp_path / "out/hotpot_qa")
    assert list(tables) == ["models", "stop-reasons"]
    assert _cell(tables["models"], "model", "task") == "gsm8k"


def test_transfer_is_a_matrix_of_score_and_tokens(tmp_path: Path) -> None:
    transfer = _tables(made.transfer(tmp_path / "out"))["transfer"]
    assert transfer.head == ("model", "hotpot_qa", "gsm8k")
    assert transfer.rows == (
        ("runs/iter_0", "50.0 / 40.0", "25.0 / 40.0"),
        ("runs/iter_1", "50.0 / 20.0", "50.0 / 20.0"),
    )


def test_self_consistency_shows_powers_of_two_and_the_last(tmp_path: Path) -> None:
    tables = _tables(made.consistency(tmp_path / "out"))
    assert [row[1] for row in tables["self-consistency"].rows] == ["1", "2", "4"]
    assert _cell(tables["models"], "model", "samples") == "4"
    assert "differences" not in tables


def test_one_table_is_rendered_as_text_markdown_and_csv() -> None:
    table = Table(("model", "score"), (("<b>|base", "5.0"), ("it, 0", "10.0")))
    assert table.text().splitlines() == [
        "model     score",
        "---------------",
        "<b>|base    5.0",
        "it, 0      10.0",
    ]
    assert table.markdown().splitlines() == [
        "| model | score |", "| --- | ---: |", "| <b>\\|base | 5.0 |", "| it, 0 | 10.0 |"
    ]  # fmt: skip
    assert table.csv().splitlines() == ["model,score", "<b>|base,5.0", '"it, 0",10.0']


def test_table_of_a_page_has_words_on_the_left_and_no_markup_of_a_model(tmp_path: Path) -> None:
    run = made.Maker(tmp_path / "run")
    run.model("<b>it, 0", [1.0, 0.0], [10, 20])
    page = write_report([run.root], tmp_path / "report", Limits()).read_text("utf-8")
    table = page.partition('<table id="table-models">')[2].partition("</table>")[0]
    assert "<tr><th class=word>model</th><th>problems</th><th>score</th>" in table
    assert "<tr><td class=word>&lt;b&gt;it, 0</td><td>2</td><td>50.0</td>" in table


def test_models_stand_in_the_order_of_the_recipe_whenever_they_were_asked(tmp_path: Path) -> None:
    run = made.Maker(tmp_path / "run")
    for label in ("iter_1", "base", "unplanned", "iter_0"):  # such as after base was moved away
        run.model(f"evaluate/{label}", [1.0], [10])
    assert Run(run.root).evaluated == ("base", "iter_0", "iter_1", "unplanned")
    (table, *_) = tables_of([Run(run.root)])
    assert [row[0] for row in table.rows] == ["base", "iter_0", "iter_1", "unplanned"]


def test_page_of_a_run_that_has_only_begun_says_so(tmp_path: Path) -> None:
    made.Maker(tmp_path / "run")
    page = write_report([tmp_path / "run"], tmp_path / "report", Limits()).read_text("utf-8")
    assert "No model has been evaluated yet." in page
    assert "no model evaluated yet" in page


def test_run_that_has_only_begun_has_no_table(tmp_path: Path) -> None:
    made.Maker(tmp_path / "run")
    assert tables_of(open_runs([tmp_path / "run"])) == ()


def test_tables_are_written_as_markdown_and_csv(tmp_path: Path) -> None:
    runs = [made.training(tmp_path / "first"), made.training(tmp_path / "second", n_iterations=1)]
    write_tables(tables_of(open_runs(runs)), tmp_path / "out")
    assert (tmp_path / "out/models.md").read_text() == (GOLDEN / "models.md").read_text()
    lines = (tmp_path / "out/rewards.csv").read_text().splitlines()
    assert lines[1].startswith("first,iter_0,0.400,0.200,0.500,0.400,")
    assert len(lines) == 1 + 3


def test_candidates_about_problems_trained_on_before_are_told_apart(tmp_path: Path) -> None:
    maker = made.Maker(tmp_path / "run")
    for label, scores in (("iter_0", (1.0, 0.0, 0.0)), ("iter_1", (1.0, 0.5, 0.0))):
        maker.iteration(label, reward=0.4, n_generated=100, seconds=1.0)
        parts = [made.reward_parts(i, 0, score, 10) for i, score in enumerate(scores)]
        write_records(tmp_path / "run" / label / "rank/rewards.jsonl", parts)
        write_records(maker.stage(f"{label}/select") / "selected.jsonl", parts[:1])
    assert open_run(tmp_path / "run").remembered == {
        "iter_0": {"problems/trained_before": 0.0, "reward/task_others": pytest.approx(1 / 3)},
        "iter_1": {"problems/trained_before": pytest.approx(1 / 3), "reward/task_others": 0.25},
    }
    write_tables(tables_of(open_runs([tmp_path / "run"])), tmp_path / "out")
    lines = (tmp_path / "out/rewards.csv").read_text().splitlines()
    assert lines[0].split(",")[-5:-3] == ["trained before", "R_task of others"]
    assert lines[2].split(",")[-5:-3] == ["0.333", "0.250"]
