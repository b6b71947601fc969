#!/usr/bin/env bash
# Every check of the project, cheapest first; `scripts/test.sh --help` says how.
set -euo pipefail
export PYTHONNOUSERSITE=1 # packages of the user would shadow those of a conda environment
unset PYTHONDONTWRITEBYTECODE # the tests start many processes; each would compile the sources anew

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
bin=$root/.envs/train/bin
model=models/smollm2-135m-instruct
all=(setup model format lint types shell tests)

usage() {
  cat <<'EOF'
Usage: scripts/test.sh [PART ...] [-- ARGUMENTS OF pytest]

Without a part, all of them in this order, stopping at the first that fails:
  setup    both environments with the tools for checks (scripts/setup_envs.sh --dev), and a browser:
           where there is none and apt-get may be used (as root), Debian's chromium
  model    SmolLM2-135M-Instruct in models/, for the tests with a real model
  format   ruff format --check
  lint     ruff check
  types    mypy, strict
  shell    shellcheck
  tests    every test, those with the real model on CPU vLLM and CPU TRL included
Further parts:
  fast     the tests that start no real model
  e2e      only those that do
Needs no GPU, no dataset hub, no terminal; only a package index (and Debian's, for the browser), and
these only while something is missing.
EOF
}

parts=()
while (($#)); do
  case $1 in
    setup | model | format | lint | types | shell | tests | fast | e2e) parts+=("$1") ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *)
      printf "test: error: unknown part '%s' (see --help)\n" "$1" >&2
      exit 2
      ;;
  esac
  shift
done
pytest_args=("$@")
((${#parts[@]})) || parts=("${all[@]}")

has_browser() {
  { command -v chromium || command -v google-chrome; } >/dev/null && command -v chromedriver >/dev/null
}

# For the tests that look at pages as a reader does.
ensure_browser() {
  local log=.envs/logs/browser.log
  if has_browser; then
    printf 'a browser and chromedriver are there\n'
    return 0
  fi
  if command -v apt-get >/dev/null && [[ $(id -u) == 0 ]]; then
    printf 'installing chromium and chromium-driver (log: %s)\n' "$log"
    mkdir -p .envs/logs
    { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends \
      install chromium chromium-driver; } >"$log" 2>&1 || tail -n 12 "$log" >&2
    has_browser && return 0
  fi
  printf 'test: error: no browser with its driver on PATH; install chromium (or google-chrome) and chromedriver\n' >&2
  return 1
}

fetch_model() {
  if [[ -s $model/config.json && -s $model/model.safetensors ]]; then
    printf '%s is there\n' "$model"
  else
    "$bin/python" -m optima.training.fetch_model --output "$model"
  fi
}

check_shell() {
  local -a scripts
  mapfile -t scripts < <(find scripts .ci bench \( -name '*.sh' -o -name '*.sbatch' -o -path .ci/run \) | sort)
  "$bin/shellcheck" -x "${scripts[@]}"
}

run_pytest() {
  local status=0
  PYTHONUNBUFFERED=1 "$bin/python" -m pytest -q --durations=10 "$@" ${pytest_args[@]+"${pytest_args[@]}"} || status=$?
  # 5: what the user selects has no test in this part
  ((status == 5 && ${#pytest_args[@]})) || return "$status"
}

# Four processes also on two cores: half the time of these tests is waiting (for servers that start,
# for deadlines, for what is lost). A real model takes all cores by itself. The order is that of
# tests/conftest.py, not that of the number of tests in a file.
run_fast() { run_pytest -m 'not e2e' -n 4 --dist loadfile --no-loadscope-reorder; }
run_e2e() { run_pytest -m e2e; }

run_part() {
  case $1 in
    setup) ensure_browser && ./scripts/setup_envs.sh --dev ;;
    model) fetch_model ;;
    format) "$bin/ruff" format --check . ;;
    lint) "$bin/ruff" check . ;;
    types) "$bin/mypy" ;;
    shell) check_shell ;;
    tests) run_fast && run_e2e ;;
    fast) run_fast ;;
    e2e) run_e2e ;;
  esac
}

if [[ ! -x $bin/pytest && ${parts[0]} != setup ]]; then
  parts=(setup "${parts[@]}")
fi
for part in "${parts[@]}"; do
  printf '\n=== %s\n' "$part"
  started=$SECONDS
  status=0
  # A part ends with the command whose status counts: `set -e` does not reach into a tested command.
  run_part "$part" </dev/null || status=$?
  if ((status)); then
    printf '=== %s FAILED with status %d after %d s\n' "$part" "$status" $((SECONDS - started)) >&2
    exit "$status"
  fi
  # pytest closes with a line of its own, which stays the last one.
  case $part in
    tests | fast | e2e) ;;
    *) printf '=== %s passed after %d s\n' "$part" $((SECONDS - started)) ;;
  esac
done
