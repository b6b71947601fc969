"""``optima-sft``: run iterative SFT as a recipe says (paper Alg. 1, 2)."""

import sys
from collections.abc import Sequence

from optima.cli import training

COMMAND = training.TrainingCommand(
    prog="optima-sft",
    method="sft",
    summary="Iterative supervised fine-tuning of agents: generate, rank, select, train, repeat.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return training.run(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
