"""The help texts, kept as the generated page docs/cli.md."""

from optima.cli.reference import PATH, reference


def test_reference_page_is_up_to_date() -> None:
    message = "run python -m optima.cli.reference"
    assert PATH.read_text(encoding="utf-8") == reference(), message


def test_every_command_is_on_the_page() -> None:
    page = reference()
    for command in ("optima-sft", "optima recipes show", "optima tasks", "optima doctor",
                    "optima prompts show", "optima prompts diversify"):  # fmt: skip
        assert f"## {command}\n" in page
