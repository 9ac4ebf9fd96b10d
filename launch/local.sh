#!/usr/bin/env bash
# Trains as several real processes on this machine's CPUs, each with some virtual devices: what a cluster does, to try it.
#
#   launch/local.sh --processes=2 --devices-per-process=2 -- \
#       --config=configs/quickstart.py --config.data.corpus=runs/corpus --workdir=runs/x
#
#   --command    pretrain (the default), finetune, evaluate or predict
#
# Process 0 writes to the terminal, the others to files that are shown when something fails. SIGTERM and SIGINT are passed on
# to all; a second SIGINT ends them at once. When one process fails the others are ended; the exit code is then that of the first
# to fail, else 75 if the run was told to stop, else 0.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly STOPPED=75 # the exit code of a run that was told to stop and saved
readonly GRACE=10   # seconds that the others have to end by themselves when one has failed

fail() {
  echo "error: $*" >&2
  exit 2
}

processes=2 devices=2 command=pretrain
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices-per-process=*) devices=${1#*=} ;;
    --command=*) command=${1#*=} ;;
    --) break ;;
    *) fail "$1: before -- there are --processes=N, --devices-per-process=N and --command=NAME" ;;
  esac
  shift
done
[[ ${1:-} == -- ]] || fail "the flags of the command are missing; give them after --"
shift
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes=$processes: give a number from 1 on"
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices-per-process=$devices: give a number from 1 on"
[[ $command =~ ^(pretrain|finetune|evaluate|predict)$ ]] || fail "--command=$command is not one of pretrain, finetune, evaluate, predict"

if [[ -n ${VENV:-} ]]; then
  python=$VENV/bin/python
elif [[ -x $root/.venv/bin/python ]]; then
  python=$root/.venv/bin/python
else
  fail "no environment yet; make it with launch/setup.sh"
fi

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export JAX_PLATFORMS=cpu JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
free_port='import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'
address=localhost:$("$python" -c "$free_port")
logs=$(mktemp -d)
pids=() running=()

signal_all() { # those that still run
  local number
  for number in ${running[@]+"${running[@]}"}; do
    kill "-$1" "${pids[number]}" 2>/dev/null || true
  done
}

trap 'signal_all KILL; rm -rf "$logs"' EXIT
interrupts=0
trap 'signal_all TERM' TERM
trap 'if ((interrupts++)); then signal_all KILL; else signal_all TERM; fi' INT

# ---------------------------------------------------------------------------------------------------------------- start
for ((number = 0; number < processes; number++)); do
  run=("$python" -m "bert_jax.$command" "--distributed=$address,$processes,$number" "$@")
  if ((number)); then
    "${run[@]}" >"$logs/$number" 2>&1 </dev/null &
  else
    "${run[@]}" </dev/null &
  fi
  pids+=($!)
  running+=("$number")
done

# ----------------------------------------------------------------------------------------------------------------- wait
# Polling rather than `wait -n`, which the bash of macOS does not know.
worst=0 deadline=0
while ((${#running[@]})); do
  still=()
  for number in "${running[@]}"; do
    if kill -0 "${pids[number]}" 2>/dev/null; then
      still+=("$number")
      continue
    fi
    code=0
    wait "${pids[number]}" || code=$?
    ((code == 0)) && continue
    if ((worst == 0 || worst == STOPPED)); then
      worst=$code
    fi
    if ((code != STOPPED && deadline == 0)); then
      echo "process $number ended with exit code $code; ending the others" >&2
      deadline=$((SECONDS + GRACE))
    fi
  done
  running=(${still[@]+"${still[@]}"})
  if ((deadline && SECONDS >= deadline)); then
    signal_all KILL
  fi
  sleep 0.1 || true
done

if ((worst && worst != STOPPED)); then
  for log in "$logs"/*; do
    [[ -s $log ]] || continue
    echo "---- output of process ${log##*/}" >&2
    cat "$log" >&2
  done
fi
exit "$worst"
