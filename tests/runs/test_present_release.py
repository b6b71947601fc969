"""Runs of the release of 2026-11-27, kept in tests/data/runs, are read with the values they had."""

import csv
import html
import json
import re
from pathlib import Path

import pytest

import optima
from optima.cli.main import main
from optima.errors import UsageError

RUNS = Path(__file__).parents[1] / "data/runs"
LABELS = ["base", "cold_start", "iter_0_sft", "iter_0_dpo"]
# Task score, tokens (#Tok), and reward of every held-out conversation, as their records hold them.
SAID = {
    "base": [(0, 44, -0.2109), (0, 43, -0.1354), (0, 72, -0.2148), (0, 40, 0.0131),
             (1, 40, 0.7384)],
    "iter_0_dpo": [(0, 40, 0.1151), (0, 48, 0.0107), (1, 34, 1.1088), (0, 63, -0.2611),
                   (0, 45, -0.1108)],
}  # fmt: skip
# Of each model: score and its interval, tokens and theirs, median, 95th percentile, reward.
FIGURES = {
    "base": ("20.0", "0.0-60.0", "47.8", "40.6-60.0", "43", "66", "0.038"),
    "cold_start": ("0.0", "0.0-0.0", "44.0", "40.0-48.4", "44", "51", "0.039"),
    "iter_0_sft": ("20.0", "0.0-60.0", "42.0", "35.8-48.2", "45", "51", "0.108"),
    "iter_0_dpo": ("20.0", "0.0-60.0", "46.0", "38.4-54.8", "45", "60", "0.173"),
}
# Spent up to each model: tokens generated and trained, conversations until they are repaid.
COSTS = {
    "cold_start": ("0", "400", "106"),  # 400 / (47.8 - 44.0)
    "iter_0_sft": ("377", "1,000", "238"),  # 1377 / (47.8 - 42.0)
    "iter_0_dpo": ("973", "1,300", "1,263"),  # 2273 / (47.8 - 46.0)
}


@pytest.fixture(autouse=True)
def in_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RUNS)


def _said(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    assert main(list(argv)) == 0
    return capsys.readouterr().out.splitlines()


def _row(lines: list[str], label: str) -> list[str]:
    """Return the cells of the first line that is about ``label``; two blanks part them."""
    line = next(line for line in lines if line.split(maxsplit=1)[:1] == [label])
    return re.split(r"\s{2,}", line)


def test_run_is_opened_from_python() -> None:
    run = optima.open_run("training")
    assert run.recipe.method == "sft_dpo"
    assert run.evaluated == tuple(LABELS)
    assert list(run.models) == LABELS[1:]
    assert Path(run.models["iter_0_dpo"].path) == RUNS / "training/iter_0_dpo/train/model"
    assert len(run.stages) == 24
    assert run.metrics["iter_0_dpo/pairs"]["pairs"] == 3
    for label, said in SAID.items():
        found = [
            (one.reward.task, one.conversation.n_tokens, one.reward.total)
            for one in run.evaluation(label)
        ]
        assert found == [pytest.approx(row, abs=5e-5) for row in said]
    assert len(list(run.candidates("iter_0_sft"))) == 10
    assert len(list(run.selected("iter_0_sft"))) == 3
    assert list(run.to_frame("base")["answer"]) == ["Alice", "Question", "Marie", "When", "Kim"]
    assert optima.open_run("baselines").evaluated == ("cot", "sc")


def test_what_a_kind_of_run_does_not_write_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"has no train\.jsonl in problems, as inference writes"):
        optima.open_run("inference").problems("train")
    assert main(["baselines", "--run", "inference", "--output", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("optima: --run inference: is not a training run (it has no recipe.yaml")
    assert main(["pairs", "--run", "inference"]) == 2


def test_trees_and_their_pairs_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    run = optima.open_run("training")
    trees = list(run.trees("iter_0_dpo"))
    assert [len(tree.rounds) for tree in trees] == [2, 2, 2]
    assert sum(len(r.rollouts) for tree in trees for r in tree.rounds) == 3 * 2 * 2
    pairs = list(run.pairs("iter_0_dpo"))
    assert [pair.problem_id for pair in pairs] == [tree.problem_id for tree in trees]
    lines = _said(capsys, "pairs", "--run", "training")
    assert _row(lines, "iter_0_dpo") == ["iter_0_dpo", "3", "4", "3", "3", "0.492", "-0.179"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("training", "24 of 24"), ("inference", "7 of 7"), ("consistency", "4 of 4"),
     ("baselines", "6 of 6")],
)  # fmt: skip
def test_status_is_done(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = _said(capsys, "status", name)
    assert line.startswith(f"{name}: done, {said} stages done in 0:00:")


def test_status_of_the_folder_has_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    first, *lines = _said(capsys, "status", ".")
    assert first == ".: done, 4 of 4 runs done"
    assert len(lines) == 4


def test_models_are_compared_with_their_costs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _said(capsys, "compare", "training:base", "training", "training:iter_0_sft")
    assert _row(lines, "training:base")[1:] == ["5", "20.0", "47.8", "5"]
    last = ["5", "20.0", "+0.0 (-60.0 to +60.0)", "46.0", "-1.8 (-20.8 to +14.0)", "5"]
    assert _row(lines, "training:iter_0_dpo")[1:] == last
    cost = _row(lines[6:], "training:iter_0_dpo")
    assert (*cost[1:3], cost[-1]) == COSTS["iter_0_dpo"]
    # talking, scoring and judging: 219 tokens
    assert cost[7] == "219"
    lines = _said(capsys, "compare", "baselines:cot", "baselines:sc")
    assert _row(lines, "baselines:sc")[3:5] == ["+0.0 (+0.0 to +0.0)", "47.8"]  # of both samples
    assert _row(lines, "baselines:sc")[5] == "+22.4 (+19.6 to +25.2)*"


@pytest.fixture(scope="module")
def tables(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, list[dict[str, str]]]]:
    """Return a report of all four, and the rows of its tables."""
    output = tmp_path_factory.mktemp("report")
    names = ("training", "inference", "consistency", "baselines")
    assert main(["report", *(str(RUNS / name) for name in names), "--output", str(output)]) == 0
    found = {}
    for path in (output / "tables").glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            found[path.stem] = list(csv.DictReader(file))
    return output, found


Tables = tuple[Path, dict[str, list[dict[str, str]]]]


def test_report_has_the_figures_of_every_model(tables: Tables) -> None:
    rows = {(row["run"], row["model"]): row for row in tables[1]["models"]}
    assert [label for run, label in rows if run == "training"] == LABELS
    for label, figures in FIGURES.items():
        row = rows["training", label]
        columns = ("score", "score, 95 %", "tokens", "tokens, 95 %", "median", "p95", "reward")
        assert tuple(row[column] for column in columns) == figures
    assert rows["inference", "iter_0_dpo"]["score, 95 %"] == "0.0-60.0"
    assert rows["inference", "iter_0_dpo"]["tokens"] == "50.4"
    assert rows["consistency", "model"]["samples"] == "3"
    # A vote is answered when one of its samples is, and what it generated is that of both.
    assert (rows["baselines", "sc"]["answered"], rows["baselines", "sc"]["generated"]) == (
        "100 %", "39.8"
    )  # fmt: skip
    assert (rows["baselines", "sc"]["tokens"], rows["baselines", "cot"]["tokens"]) == (
        "47.8", "25.4"
    )  # fmt: skip


def test_report_has_costs_candidates_and_votes(tables: Tables) -> None:
    costs = {row["model"]: row for row in tables[1]["cost"] if row["run"] == "training"}
    columns = ("tokens generated", "tokens trained", "repaid after")
    assert {k: tuple(row[c] for c in columns) for k, row in costs.items()} == COSTS
    assert [row["train"] for row in costs.values()] == ["2 s", "3 s", "5 s"]
    inferred = {row["model"]: row for row in tables[1]["cost"] if row["run"] == "inference"}
    assert inferred["iter_0_dpo"]["tokens generated"] == "973"  # noted when it was evaluated
    rewards = {row["iteration"]: row for row in tables[1]["rewards"]}
    assert [rewards["iter_0_sft"][key] for key in ("R", "R_token", "conversations")] == [
        "-0.136", "0.921", "10"
    ]  # fmt: skip
    assert [rewards["iter_0_dpo"][key] for key in ("R", "R_task", "conversations")] == [
        "0.007", "0.083", "12"
    ]  # fmt: skip
    votes = [(row["k"], row["tokens"]) for row in tables[1]["self-consistency"]]
    assert votes == [("1", "41.4"), ("2", "81.3"), ("3", "126.6")]
    ends = {row["conversations of"]: row for row in tables[1]["stop-reasons"]}
    assert ends["candidates of iter_0_dpo"]["agreement"] == "100.0 %"
    assert ends["sc"]["alone"] == "100.0 %"
    differences = {row["model"]: row for row in tables[1]["differences"]}
    assert differences["baselines:sc"]["tokens"] == "47.8"
    assert len(differences) == 4 + 3 + 2  # samples of self-consistency are left out


def test_report_holds_every_conversation_and_tree(tables: Tables) -> None:
    page = (tables[0] / "report.html").read_text("utf-8")
    # 4 x 5 held-out, 10 candidates, 2 of the probe and 2 scripts; 15 of each inference; 5 + 10
    assert f"Conversations <small>{20 + 10 + 2 + 2 + 15 + 15 + 15}</small>" in page
    assert "Trees <small>3</small>" in page
    found = re.search(r'type="application/json"[^>]*>(.*?)</script>', page, flags=re.DOTALL)
    assert found is not None
    payload = json.loads(html.unescape(found[1]))
    assert [(line["label"], line["rounds"], line["pairs"]) for line in payload["trees"]] == [
        ("iter_0_dpo", 2, 1)
    ] * 3
    assert [source["label"] for source in payload["sources"] if source["run"] == 0] == [
        "base", "cold_start script", "cold_start", "iter_0_sft candidates", "iter_0_sft",
        "iter_0_dpo probe", "iter_0_dpo",
    ]  # fmt: skip


def test_reading_changed_nothing(tables: Tables) -> None:
    assert not list(RUNS.rglob("report"))
    assert {path.name for path in (RUNS / "training").iterdir()} == {
        "LOCK", "cold_start", "evaluate", "iter_0_dpo", "iter_0_sft", "metrics.jsonl", "problems",
        "provenance.json", "recipe.yaml",
    }  # fmt: skip
