"""The page in a real browser: what a reader does with it."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from optima.reporting.report import Limits, write_report
from tests.reporting.browser import Page, chromium

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>{{title}}"
)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as opened:
        yield opened


def _n_shown(page: Page) -> int:
    return int(re.sub(r"\D", "", page.text("#count").partition(" of ")[0]))


def _open(page: Page, report: Path, anchor: str = "#conversations") -> None:
    page.open(report, anchor)
    page.wait(lambda: page.count(".line"), "the list of conversations")


def test_page_opens_from_disk_without_a_complaint(page: Page, report: Path) -> None:
    for anchor in ("", "#conversations", "#trees", "#setup"):
        page.open(report, anchor)
        page.wait(lambda: page.run("return document.readyState") == "complete", "the page")
    assert page.complaints() == []
    page.open(report)
    assert page.count("figure svg") >= 4
    assert "iter_1_dpo" in page.text("#table-models")
    assert "→" in page.text(".card")


def test_every_stored_conversation_is_listed(page: Page, report: Path, trained: Path) -> None:
    _open(page, report)
    files = [*trained.rglob("conversations.jsonl"), *trained.rglob("scripts.jsonl")]
    stored = sum(len(path.read_text().splitlines()) for path in files)
    assert _n_shown(page) == stored


def test_filters_keep_what_they_say(page: Page, report: Path, trained: Path) -> None:
    _open(page, report)
    everything = _n_shown(page)
    names = page.run("return given.sources.map((s) => s.name)")
    page.choose("f-source", str(names.index("iter_0_sft/generate")))
    stored = [
        json.loads(line)
        for line in (trained / "iter_0_sft/generate/conversations.jsonl").open(encoding="utf-8")
    ]
    assert _n_shown(page) == len(stored)
    stops = page.run("return given.stops")
    page.choose("f-stop", str(stops.index("agreement")))
    assert _n_shown(page) == sum(c["stop_reason"] == "agreement" for c in stored)
    page.choose("f-stop", "")
    page.click("#f-chosen")
    selected = (trained / "iter_0_sft/select/selected.jsonl").read_text().splitlines()
    assert _n_shown(page) == len(selected)
    page.click("button[type=reset]")
    page.wait(lambda: _n_shown(page) == everything, "the filters to be cleared")


def test_outcomes_divide_the_conversations(page: Page, report: Path) -> None:
    _open(page, report)
    everything, parts = _n_shown(page), 0
    for outcome in ("right", "partly", "wrong", "unanswered", "failed", "unjudged"):
        page.choose("f-outcome", outcome)
        parts += _n_shown(page)
    assert parts == everything


def test_text_search_finds_what_was_said(page: Page, report: Path, trained: Path) -> None:
    lines = (trained / "iter_0_sft/generate/conversations.jsonl").read_text().splitlines()
    said = json.loads(lines[3])["turns"][0]["text"].strip()
    _open(page, report)
    page.choose("f-q", said.upper())  # case does not matter
    page.wait(lambda: page.count("#search-progress[hidden]") and _n_shown(page) < 50, "the search")
    assert _n_shown(page) >= 1
    page.click(".line")
    page.wait(lambda: said in page.text("#reader"), "the conversation that says it")


def test_conversation_is_read_with_contexts_gold_losses_and_reward(
    page: Page, report: Path, trained: Path
) -> None:
    _open(page, report)
    names = page.run("return given.sources.map((s) => s.name)")
    page.choose("f-source", str(names.index("evaluate/base/talk")))
    page.click(".line")
    page.wait(lambda: page.count("#reader .turn"), "the conversation")
    folder = trained / "evaluate/base"
    c, reward, losses = (
        json.loads((folder / part).read_text().splitlines()[0])
        for part in ("talk/conversations.jsonl", "rank/rewards.jsonl", "score/losses.jsonl")
    )
    problems = (trained / "problems/test.jsonl").read_text().splitlines()
    problem = next(p for p in map(json.loads, problems) if p["problem_id"] == c["problem_id"])
    page.run("document.querySelectorAll('#reader details').forEach((d) => { d.open = true; })")
    shown = page.text("#reader")
    for text in (problem["question"], problem["golds"][0], *problem["contexts"]):
        assert " ".join(text.split()) in " ".join(shown.split())
    assert page.count("#reader .turn") == len(c["turns"])
    for turn, loss in zip(c["turns"], losses["losses"], strict=True):
        assert turn["text"].strip() in shown
        assert f"loss {loss:.2f} nats/token" in shown
    assert f"{reward['total']:.3f}" in page.text("#reader .reward")


def test_same_problem_is_followed_across_iterations(page: Page, report: Path) -> None:
    _open(page, report)
    names = page.run("return given.sources.map((s) => s.name)")
    page.choose("f-source", str(names.index("evaluate/base/talk")))
    page.click(".line")
    page.wait(lambda: page.count("#reader .turn"), "the conversation")
    page.press("s")
    page.wait(lambda: page.count(".column") == 6, "a column for each model")
    titles = [title.lower() for title in page.text(".column h3").splitlines()]
    assert titles == ["base", "cold_start", "iter_0_sft", "iter_0_dpo", "iter_1_sft", "iter_1_dpo"]
    address = page.run("return location.href")
    page.open(address)
    page.wait(lambda: page.count(".column") == 6, "the same view from its address")


def test_keyboard_alone_leads_to_a_conversation_and_back(page: Page, report: Path) -> None:
    _open(page, report)
    page.press("/")
    assert page.run("return document.activeElement.id") == "f-q"
    page.press("live", Keys.TAB)
    page.wait(lambda: page.count("#search-progress[hidden]"), "the search")
    page.run("document.getElementById('list').focus()")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    page.wait(lambda: page.count("#reader .turn"), "the conversation under the cursor")
    assert page.run("return view.at") == 2
    assert page.count('.line[aria-selected="true"]') == 1
    page.press(Keys.ENTER)
    assert page.run("return document.activeElement.id") == "reader"
    page.press("]")
    page.press(Keys.ESCAPE)
    assert page.run("return document.activeElement.id") == "list"
    page.press("?")
    assert page.count("dialog[open]") == 1
    page.press(Keys.ESCAPE)
    assert page.count("dialog[open]") == 0


def test_tree_is_drawn_with_values_and_its_pairs_are_marked(
    page: Page, report: Path, trained: Path
) -> None:
    page.open(report, "#trees")
    page.wait(lambda: page.count("#tree-canvas .node"), "the tree")
    tree = json.loads((trained / "iter_0_dpo/search/trees.jsonl").read_text().splitlines()[0])
    n_nodes = sum(len(finished["nodes"]) for finished in tree["rounds"])
    assert page.count("#tree-canvas .node") == n_nodes + 1  # and the root
    assert page.count("#tree-canvas .edge") == n_nodes
    pairs = (trained / "iter_0_dpo/pairs/pairs.jsonl").read_text().splitlines()
    of_tree = [p for p in map(json.loads, pairs) if p["problem_id"] == tree["problem_id"]]
    assert page.count(".edge.chosen.trained") == len(of_tree)
    assert page.count(".edge.rejected.trained") == len(of_tree)
    assert page.count(".node.expanded") == len({r["expanded"] for r in tree["rounds"]})
    totals = [x["reward"]["total"] for r in tree["rounds"] for x in r["rollouts"]]
    assert f"V {sum(totals) / len(totals):.2f}" in page.text('[data-node="0"] text')
    page.run("document.querySelector('[data-node=\"0\"]').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert page.run("return document.activeElement.dataset.node") == "1"
    assert tree["rounds"][0]["nodes"][0]["turn"]["text"].strip() in page.text("#tree-node")


def test_nothing_that_a_model_says_runs_or_becomes_markup(
    page: Page, trained: Path, tmp_path: Path
) -> None:
    copy = tmp_path / HOSTILE.replace("/", "")[:40]
    shutil.copytree(trained, copy)
    path = copy / "evaluate/base/talk/conversations.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[0])
    record["turns"][0] |= {"text": HOSTILE, "answer": HOSTILE}
    record["turns"][0]["name"] = HOSTILE
    record["error"] = record["answer"] = record["format_id"] = HOSTILE
    path.write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")
    problems = copy / "problems/test.jsonl"
    changed = []
    for line in problems.read_text().splitlines():
        problem = json.loads(line)
        changed.append(json.dumps(problem | {"question": HOSTILE, "golds": [HOSTILE]}))
    problems.write_text("\n".join(changed) + "\n")
    for stage in ("evaluate/base/talk", "problems"):  # as if it had been written so
        done = json.loads((copy / stage / "DONE.json").read_text())
        (copy / stage / "DONE.json").write_text(
            json.dumps(done | {"outputs": {}, "sizes": {}, "checksum": ""})
        )
    _open(page, write_report([copy], tmp_path / "out", Limits()))
    names = page.run("return given.sources.map((s) => s.name)")
    page.choose("f-source", str(names.index("evaluate/base/talk")))
    page.choose("f-q", "window.hacked")
    page.wait(lambda: page.count("#search-progress[hidden]"), "the search")
    page.run("applyFilters()")
    page.click(".line")
    page.wait(lambda: page.count("#reader .turn"), "the conversation")
    assert page.run("return window.hacked") is None
    assert page.count("img") == 0
    assert HOSTILE in page.text("#reader .said")
    assert HOSTILE in page.text("#reader h2")
    assert page.complaints() == []


def test_phone_shows_the_list_then_the_conversation_and_nothing_wider_than_itself(
    report: Path,
) -> None:
    with chromium(390, 800) as phone:
        _open(phone, report)
        assert phone.run("return document.getElementById('reader').checkVisibility()") is False
        phone.click(".line")
        phone.wait(lambda: phone.count("#reader .turn"), "the conversation")
        assert phone.run("return document.getElementById('left').checkVisibility()") is False
        phone.click("#reader .back")
        assert phone.run("return document.getElementById('left').checkVisibility()") is True
        for anchor in ("", "#conversations", "#trees", "#setup"):
            phone.open(report, anchor)
            width = phone.run("return document.documentElement.scrollWidth")
            assert width <= 390, anchor


def test_dark_and_light_follow_the_system_and_the_button(page: Page, report: Path) -> None:
    def paper() -> str:
        return str(page.run("return getComputedStyle(document.body).backgroundColor"))

    seen = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        page.open(report)
        seen[scheme] = paper()
    assert seen["light"] != seen["dark"]
    page.click("#theme")
    assert paper() == seen["light"]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
