"""What every part of a recipe is."""

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from optima.recipe.checks import check_texts


class Section(BaseModel):
    """Base of every part of a recipe.

    A check over several fields begins its message with the key of one of them: ``key: what``.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="after")
    def _check_texts(self) -> Self:
        check_texts(self)
        return self
