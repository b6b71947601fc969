"""``optima-dpo``: run iterative DPO as a recipe says (paper Alg. 3, 4, 5)."""

import sys
from collections.abc import Sequence

from optima.cli import training

COMMAND = training.TrainingCommand(
    prog="optima-dpo",
    method="dpo",
    summary="Iterative preference training of agents: grow trees, pair siblings, train, repeat.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return training.run(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
