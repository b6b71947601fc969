#!/usr/bin/env bash
# Brings a model into models/; `scripts/fetch_model.sh --help` says which and how.
set -euo pipefail
export PYTHONNOUSERSITE=1 # packages of the user would shadow those of a conda environment

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=$root/.envs/train/bin/python
if [[ ! -x $python ]]; then
  printf 'fetch_model: error: there is no environment yet; run scripts/setup_envs.sh\n' >&2
  exit 1
fi
exec "$python" -m optima.training.fetch_model "$@"
