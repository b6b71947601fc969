#!/usr/bin/env bash
# Makes the runs of docs/results.md on the GPUs of one host, several side by side, in slices of time.
#
#   MODELS=DIR DATA=DIR RUNS=DIR bench/results.sh SECONDS LANES
#
# MODELS holds qwen2.5-coder-1.5b-instruct and -0.5b-instruct, DATA a folder a task, RUNS is written. LANES is a
# file: each line a GPU and the jobs that follow each other there ("0 mwh_dpo trivia"); a GPU may have
# several lines. When SECONDS are over all runs are interrupted; the same command goes on from there.
set -euo pipefail
: "${MODELS:?}" "${DATA:?}" "${RUNS:?}"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
end=$((SECONDS + ${1:?seconds})) lanes=$(cat "${2:?file of lanes}")
cd "$root"

small=(recipes/models/qwen2.5-1.5b.yaml) tiny=(recipes/models/qwen2.5-0.5b.yaml)
model=model.path=$MODELS/qwen2.5-coder-1.5b-instruct half=model.path=$MODELS/qwen2.5-coder-0.5b-instruct
# Three runs share a card of 140 GB, two one of 80: a fixed cache, activations computed again.
graphs=--compilation-config.mode=0,--compilation-config.cudagraph_mode=FULL_DECODE_ONLY
serve=(serving.gpu_memory_utilization=0.1
  "serving.extra_args=[--kv-cache-memory-bytes,${KV_CACHE:-6G},$graphs]")
train=("${serve[@]}" train.gradient_checkpointing=true)
dpo=("${train[@]}" dpo.micro_batch_size=4)
team=(train.lora.serve=adapter train.learning_rate=1.0e-4) # as recipes/teams/solver_critic.yaml trains

sft() { # run task [option ...]
  optima-sft --config "recipes/sft/$2.yaml" "${small[@]}" "$model" "${train[@]}" "data.path=$DATA/$2" \
    --run-dir "$RUNS/$1" "${@:3}"
}
transfer() { # run task
  optima transfer --models "$RUNS/$1,${model#*=}" --tasks "$2" --data "$2=$DATA/$2" --limit 300 \
    --output "$RUNS/transfer_$1" "${serve[@]}"
}
votes() { # run
  optima-multi-sc --model "$RUNS/$1" --base "${model#*=}" --n-samples 16 --limit 300 --output "$RUNS/sc_$1" \
    "${serve[@]}"
}
job() {
  case $1 in
    hotpot_sft) sft "$1" hotpot_qa && transfer "$1" mwh_qa && votes "$1" ;;
    gsm8k_sft) sft "$1" gsm8k && transfer "$1" math && votes "$1" ;;
    trivia) sft "$1" trivia_qa data.n_test=250 ;;
    mmlu) sft "$1" mmlu iterations=2 ;;
    mwh_dpo)
      optima-dpo --config recipes/dpo/mwh_qa.yaml "${small[@]}" "$model" "${dpo[@]}" "data.path=$DATA/mwh_qa" \
        data.n_train=350 data.n_test=100 iterations=4 --run-dir "$RUNS/$1"
      ;;
    gsm8k_dpo)
      optima-dpo --config recipes/dpo/gsm8k.yaml "${small[@]}" "$model" "${dpo[@]}" "data.path=$DATA/gsm8k" \
        --run-dir "$RUNS/$1"
      ;;
    hotpot_sft_dpo)
      optima-sft-dpo --config recipes/sft_dpo/hotpot_qa.yaml "${small[@]}" "$model" "${dpo[@]}" \
        "data.path=$DATA/hotpot_qa" iterations=2 --run-dir "$RUNS/$1"
      ;;
    arc_ablation)
      optima ablate --config recipes/sft/arc.yaml "${small[@]}" "$model" "${train[@]}" "data.path=$DATA/arc" \
        iterations=2 --run-dir "$RUNS/$1"
      ;;
    mixture)
      optima-sft --config recipes/sft/hotpot_qa.yaml recipes/mixtures/four_tasks.yaml "${small[@]}" "$model" \
        "${train[@]}" "tasks.hotpot_qa.data.path=$DATA/hotpot_qa" "tasks.mwh_qa.data.path=$DATA/mwh_qa" \
        "tasks.gsm8k.data.path=$DATA/gsm8k" "tasks.arc.data.path=$DATA/arc" --run-dir "$RUNS/$1"
      ;;
    hotpot_shared) sft "$1" hotpot_qa "${team[@]}" ;;
    gsm8k_shared) sft "$1" gsm8k "${team[@]}" ;;
    hotpot_separate) small+=(recipes/teams/solver_critic.yaml) && sft "$1" hotpot_qa ;;
    gsm8k_separate) small+=(recipes/teams/solver_critic.yaml) && sft "$1" gsm8k ;;
    half_cold)
      optima-sft --config recipes/sft/hotpot_qa.yaml "${tiny[@]}" "$half" "${train[@]}" \
        "data.path=$DATA/hotpot_qa" 'cold_start={n_problems: 100, terse_share: 1.0}' --run-dir "$RUNS/$1"
      ;;
    *)
      printf 'results: error: no job %s\n' "$1" >&2
      return 2
      ;;
  esac
}

lane() { # gpu job ...
  local name left
  for name in "${@:2}"; do
    left=$((end - SECONDS))
    [[ -f $RUNS/$name.done ]] && continue
    ((left > 30)) || return 0 # a start of servers takes longer
    printf '%(%T)T GPU %s: %s, %s s left\n' -1 "$1" "$name" "$left"
    set -m # a group of its own, to be interrupted as a whole
    (CUDA_VISIBLE_DEVICES=$1 job "$name" && touch "$RUNS/$name.done") >>"$RUNS/$name.log" 2>&1 </dev/null &
    local pid=$!
    set +m
    while kill -0 "$pid" 2>/dev/null && ((SECONDS < end)); do sleep 1; done
    kill -INT -- "-$pid" 2>/dev/null || true
    for _ in {1..30}; do kill -0 "$pid" 2>/dev/null && sleep 1; done
    kill -KILL -- "-$pid" 2>/dev/null || true # it has had half a minute to end
    wait "$pid" || true
  done
}

mkdir -p "$RUNS"
while read -r gpu names; do
  [[ -z $gpu || $gpu == '#'* ]] && continue
  read -r -a names <<<"$names"
  lane "$gpu" "${names[@]}" &
  sleep 4 # so that not all look for free ports at once
done <<<"$lanes"
wait
tail -n 2 "$RUNS"/*.log
