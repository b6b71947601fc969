#!/usr/bin/env bash
# From a fresh clone to a trained team of two agents; `scripts/quickstart.sh --help` says how.
set -euo pipefail
export PYTHONNOUSERSITE=1 # packages of the user would shadow those of a conda environment

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
recipe=recipes/sft/quickstart.yaml
model=models/smollm2-135m-instruct

usage() {
  cat <<EOF
Usage: scripts/quickstart.sh [arguments of optima-sft]

Makes both environments (scripts/setup_envs.sh), fetches SmolLM2-135M-Instruct into $model,
and runs optima-sft --config $recipe: two agents, one small model, a task generated
from the seed. It ends with a table of the base model against every iteration. What exists is reused,
and an interrupted run goes on where it stopped. Some 12 minutes on 2 CPU cores that compute in
bfloat16 once the environments exist, longer on others; making them takes some minutes more.

Arguments are handed on, for instance:
  scripts/quickstart.sh seed=1            other problems, other samples, a run directory of their own
  scripts/quickstart.sh iterations=3
  scripts/quickstart.sh --dry-run         print the plan and stop
  .envs/train/bin/optima-sft --help       everything else
EOF
}

for argument in "$@"; do
  if [[ $argument == -h || $argument == --help ]]; then
    usage
    exit 0
  fi
done

"$root/scripts/setup_envs.sh"
if [[ ! -s $model/config.json || ! -s $model/model.safetensors ]]; then
  printf 'quickstart: fetching the model into %s\n' "$model"
  .envs/train/bin/python -m optima.training.fetch_model --output "$model"
fi
exec .envs/train/bin/optima-sft --config "$recipe" "$@"
