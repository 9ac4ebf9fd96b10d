#!/usr/bin/env bash
# From nothing to a pretrained and fine-tuned encoder and a report, on this machine, in ten minutes.
#
#   launch/quickstart.sh [--accelerator=cuda13|tpu] [--workdir=runs/quickstart] [--objectives=mlm] [--seeds=3]
#
# Makes .venv and installs the requirements (see launch/setup.sh for --accelerator, $PYTHON and $VENV), then runs
# tools/quickstart.py, whose flags the others are. It runs on the CPU even where there is an accelerator: what
# --accelerator installs is for the commands after it. Interrupted, it continues when run again.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

setup=() flags=()
for argument in "$@"; do
  case $argument in
    --accelerator=*) setup+=("$argument") ;;
    *) flags+=("$argument") ;;
  esac
done
"$root/launch/setup.sh" ${setup[@]+"${setup[@]}"}
cd "$root"
exec "${VENV:-.venv}/bin/python" tools/quickstart.py ${flags[@]+"${flags[@]}"}
