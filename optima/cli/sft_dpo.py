"""``optima-sft-dpo``: run SFT and DPO in turn as a recipe says (paper section 3.3)."""

import sys
from collections.abc import Sequence

from optima.cli import training

COMMAND = training.TrainingCommand(
    prog="optima-sft-dpo",
    method="sft_dpo",
    summary="Supervised and preference training of agents in turn, each from the last model.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return training.run(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
