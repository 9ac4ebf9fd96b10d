#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice: the same command on every one of them.
#
#   TPU=my-slice ZONE=us-central2-b launch/tpu_pod.sh setup
#   TPU=my-slice ZONE=us-central2-b launch/tpu_pod.sh pretrain \
#       --config=configs/bert_base.py --config.data.corpus=/mnt/shared/corpus --workdir=/mnt/shared/runs/x
#
# Run it on a machine with gcloud, logged in. The checkout lies in ~/bert_jax ($FOLDER) of every host; corpus and run folder on a
# file system that is mounted on all hosts. Further commands: finetune, evaluate, predict; stop (SIGTERM to every process: the run saves
# and ends with 75; the same command takes it up again).
#
# Not tried on a real slice: written after the documentation of Cloud TPU and jax. What the processes do together is tested with
# launch/local.sh.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

: "${TPU:?name the slice: TPU=NAME ZONE=ZONE launch/tpu_pod.sh ...}" "${ZONE:?name the zone of the slice: ZONE=...}"
folder=${FOLDER:-bert_jax}
command=${1:-}
(($# == 0)) || shift

case $command in
  setup) remote="launch/setup.sh --accelerator=tpu" ;;
  stop) remote="pkill -TERM -u \$USER -f 'python -m bert_jax[.]'" ;;
  pretrain | finetune | evaluate | predict)
    remote=$(printf '%q ' .venv/bin/python -m "bert_jax.$command" --distributed=auto "$@")
    ;;
  *) fail "${command:-nothing} given; launch/tpu_pod.sh takes setup, pretrain, finetune, evaluate, predict or stop" ;;
esac
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="cd $folder && $remote"
