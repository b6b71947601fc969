"""Figures: that they are there, can stand in any page, and show every kind of run."""

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from optima.reporting.drawing import COLOURS, INK, Figure, shorten, write_figures
from optima.reporting.report import figures_of
from optima.runs.comparison import open_runs
from tests.reporting import made

DARK = "#15171a"


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    root = tmp_path_factory.mktemp("runs")
    runs = [
        made.training(root / "training"),
        made.training(root / "other", n_iterations=3),
        made.baselines(root / "baselines"),
        made.consistency(root / "consistency"),
        made.transfer(root / "transfer"),
    ]
    return {figure.name: figure for figure in figures_of(open_runs(runs))}


def test_every_figure_is_there_where_runs_hold_data_for_it(figures: dict[str, Figure]) -> None:
    assert list(figures) == [
        "score-by-model", "tokens-by-model", "score-against-tokens",
        "self-consistency-by-samples", "self-consistency-by-tokens", "transfer",
        "length-distribution", "stop-reasons", "stop-reasons-of-candidates", "reward-by-iteration",
        "cost-by-stage",
    ]  # fmt: skip


def test_figures_are_well_formed_and_run_and_fetch_nothing(figures: dict[str, Figure]) -> None:
    for figure in figures.values():
        root = ElementTree.fromstring(figure.svg)
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not tags & {"script", "style", "image", "foreignObject", "metadata"}
        assert "width" not in root.attrib
        assert root.attrib["viewBox"]
        for element in root.iter():
            for key, value in element.attrib.items():
                assert not key.rpartition("}")[2].startswith("on")
                assert not re.search(r"https?:|javascript:|data:", value)
                if key == "href":
                    assert value.startswith("#")
        assert figure.png.startswith(b"\x89PNG\r\n")


def test_ink_is_the_pages_and_identifiers_belong_to_one_figure(figures: dict[str, Figure]) -> None:
    seen: set[str] = set()
    for figure in figures.values():
        assert INK not in figure.svg
        assert "currentColor" in figure.svg
        ids = re.findall(r'\bid="([^"]+)"', figure.svg)
        assert len(ids) == len(set(ids))
        assert not seen & set(ids)
        seen |= set(ids)
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', figure.svg))
        assert {one or other for one, other in used} == set(ids)


def test_names_of_models_stand_as_text_and_are_no_markup(tmp_path: Path) -> None:
    run = made.Maker(tmp_path / "run")
    for name in ("<b>bold</b>", "$x_1$ & more"):
        run.model(name.replace("/", "_"), [1.0, 0.0], [10, 20])
    figures = {figure.name: figure.svg for figure in figures_of(open_runs([run.root]))}
    assert "&lt;b&gt;bold&lt;_b&gt;" in figures["length-distribution"]
    assert "$x_1$ &amp; more" in figures["length-distribution"]


def test_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    root = made.training(tmp_path / "run", n_iterations=1)
    first, second = figures_of(open_runs([root])), figures_of(open_runs([root]))
    assert first == second


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (made.training, {"score-by-model", "cost-by-stage", "reward-by-iteration"}),
        (made.baselines, {"score-by-model", "score-against-tokens", "length-distribution"}),
        (made.consistency, {"self-consistency-by-samples", "self-consistency-by-tokens"}),
        (made.transfer, {"transfer"}),
    ],
)
def test_each_kind_of_run_alone_has_its_figures(
    make: Callable[[Path], Path], names: set[str], tmp_path: Path
) -> None:
    assert names <= {figure.name for figure in figures_of(open_runs([make(tmp_path / "run")]))}


def test_run_that_has_only_begun_has_no_figure(tmp_path: Path) -> None:
    made.Maker(tmp_path / "run")
    assert figures_of(open_runs([tmp_path / "run"])) == ()


def test_candidates_without_reward_are_left_out_of_the_reward(tmp_path: Path) -> None:
    run = made.Maker(tmp_path / "run", method="dpo")
    for label in ("iter_0", "iter_1"):
        run.stage(f"{label}/search", reward__total=0.5, reward__task=0.25, stop__agreement=1.0)
    names = {figure.name for figure in figures_of(open_runs([run.root]))}
    assert names == {"reward-by-iteration", "stop-reasons-of-candidates"}


def test_single_model_with_one_problem_is_drawn(tmp_path: Path) -> None:
    run = made.Maker(tmp_path / "run")
    run.model("model", [1.0], [0])
    names = {figure.name for figure in figures_of(open_runs([run.root]))}
    assert names == {"length-distribution", "stop-reasons"}


def test_bars_have_a_legend_also_where_all_conversations_ended_alike(tmp_path: Path) -> None:
    run = made.Maker(tmp_path / "run", method="dpo")
    run.stage("iter_0/search", stop__max_turns=1.0)
    (figure,) = figures_of(open_runs([run.root]))
    assert figure.name == "stop-reasons-of-candidates"
    assert ">max turns</text>" in figure.svg


def test_figures_are_written_as_svg_and_png(tmp_path: Path, figures: dict[str, Figure]) -> None:
    write_figures(list(figures.values())[:1], tmp_path / "a/b")
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == [
        "score-by-model.png", "score-by-model.svg"
    ]  # fmt: skip


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("page", ["#ffffff", DARK])
def test_series_read_on_white_and_on_near_black(colour: str, page: str) -> None:
    light, dark = sorted((_luminance(colour), _luminance(page)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3  # WCAG 2.1, 1.4.11: graphical objects


def test_long_names_keep_their_beginning_and_more_of_their_end() -> None:
    assert shorten("short", 10) == "short"
    found = shorten("/data/checkpoints/sft/iter_5", 13)
    assert found == "/dat…t/iter_5"
    assert len(found) == 13


def _luminance(colour: str) -> float:
    """Return the relative luminance of sRGB (WCAG 2.1)."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
