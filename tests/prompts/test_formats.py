"""The built-in pool and one's own formats."""

from itertools import combinations
from pathlib import Path

import pytest
from rapidfuzz import fuzz

from optima.errors import UsageError
from optima.prompts.diversify import MAX_SIMILARITY
from optima.prompts.rendering import load_formats


def test_pool_has_at_least_24_formats_of_one_to_three_sentences() -> None:
    formats = load_formats()
    assert len(formats) >= 24
    assert all(5 <= len(found.text.split()) <= 40 for found in formats)
    assert all("\n" not in found.text for found in formats)


def test_no_two_formats_of_the_pool_resemble_each_other() -> None:
    alike = [
        (a.format_id, b.format_id)
        for a, b in combinations(load_formats(), 2)
        if fuzz.token_sort_ratio(a.text.lower(), b.text.lower()) >= MAX_SIMILARITY
    ]
    assert alike == []


def test_own_formats_follow_the_pool_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Write only verbs.\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("Write only nouns.\n", encoding="utf-8")
    formats = load_formats(tmp_path)
    assert formats[: len(load_formats())] == load_formats()
    assert [(f.format_id, f.text) for f in formats[-2:]] == [
        ("a", "Write only nouns."),
        ("b", "Write only verbs."),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("notes.md", "x", "holds no"),
        ("empty.txt", " \n", "is empty"),
        ("01-json.txt", "Write JSON.", "taken"),
    ],
)
def test_a_folder_that_cannot_serve_as_a_pool_is_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_formats(tmp_path)
