"""Which recipes have ablations."""

from pathlib import Path

import pytest

from optima.errors import UsageError
from optima.studies.sweep import read_ablations

SFT = "method: sft\ntask: two_hop\nmodel: {path: m}\n"


@pytest.mark.parametrize("weight", ["lambda_token", "lambda_loss"])
def test_ablation_of_a_weight_that_is_0_anyway_is_refused(weight: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(SFT)
    assert list(read_ablations(path, [])) == ["full", "no_token", "no_loss"]
    with pytest.raises(UsageError, match=f"reward.{weight}: is 0 in the recipe itself") as said:
        read_ablations(path, [f"reward.{weight}=0"])
    read_ablations(path, [str(said.value).rpartition("such as ")[2]])
