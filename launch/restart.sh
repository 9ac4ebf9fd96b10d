#!/usr/bin/env bash
# Starts a command again when it fails, for jobs whose machines or processes may be lost:
#
#   launch/restart.sh --most=5 --pause=10 -- \
#       launch/local.sh --processes=2 -- --config=configs/quickstart.py --config.data.corpus=runs/corpus --workdir=runs/x
#
# It does not start it again after the exit codes 0 (complete), 2 (invalid input), 75 (told to stop), 130 and 143 (interrupted,
# terminated). The pause, in seconds, doubles with each failure, up to 300; it is as at first when the run has a newer checkpoint
# than at the failure before. After --most failures in a row without a newer checkpoint it gives up, with the last exit code.
# SIGTERM is passed on, and SIGINT as SIGTERM. Each process of a job on several hosts may have its own restart.sh: when one is
# lost the others end, and all meet again.
set -euo pipefail
readonly LONGEST=300

fail() {
  echo "error: $*" >&2
  exit 2
}

most=5 pause=10
while (($#)); do
  case $1 in
    --most=*) most=${1#*=} ;;
    --pause=*) pause=${1#*=} ;;
    --) break ;;
    *) fail "$1: before -- there are --most=N and --pause=SECONDS" ;;
  esac
  shift
done
[[ ${1:-} == -- && $# -gt 1 ]] || fail "the command is missing; give it after --"
shift
[[ $most =~ ^[1-9][0-9]*$ ]] || fail "--most=$most: give a number from 1 on"
[[ $pause =~ ^[0-9]+$ ]] || fail "--pause=$pause: give a number of seconds"

workdir=""
for argument; do
  [[ $argument != --workdir=* ]] || workdir=${argument#*=}
done
[[ -n $workdir ]] || fail "the command has no --workdir=FOLDER, by whose checkpoints progress is seen"

newest() { # the step of the newest complete checkpoint; the folders of incomplete ones have other names
  local path step=-1
  for path in "$workdir"/checkpoints/*; do
    [[ ! ${path##*/} =~ ^[0-9]+$ ]] || ((${path##*/} <= step)) || step=${path##*/}
  done
  echo "$step"
}

child="" told=0 # told: signals so far
stop() { # the command, and start none after it
  told=$((told + 1))
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap stop TERM INT # bash starts the command with SIGINT ignored

failures=0 reached=$(newest) delay=$pause
while true; do
  "$@" &
  child=$!
  while true; do # each signal ends the waiting, not the command
    before=$told code=0
    wait "$child" || code=$?
    ((told > before)) || break
  done
  child=""
  case $code in 0 | 2 | 75 | 130 | 143) exit "$code" ;; esac
  ((told == 0)) || exit "$code"

  step=$(newest)
  if ((step > reached)); then
    failures=0 reached=$step delay=$pause
  else
    failures=$((failures + 1))
  fi
  if ((failures >= most)); then
    echo "error: exit code $code; giving up after $failures failures without a newer checkpoint" >&2
    exit "$code"
  fi
  echo "exit code $code; starting again in $delay s (failures without a newer checkpoint: $failures of $most)" >&2
  for ((second = 0; second < delay && told == 0; second++)); do sleep 1 || true; done
  ((told == 0)) || exit "$code"
  delay=$((2 * delay > LONGEST ? LONGEST : 2 * delay))
done
