#!/usr/bin/env bash
# Runs the tests on this machine's CPUs, without those marked slow: tests/run.sh [arguments of pytest]
#
#   -m slow     the slow ones alone
#   -m ""       all
#
#   $VENV                   the folder of the environment; otherwise .venv, which is made if it is missing
#   $BERT_JAX_TESTS_CACHE   a folder to keep compiled programs in for the next time; otherwise one that is removed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export VENV=${VENV:-.venv}
launch/setup.sh --dev
# Processes that the tests start share what they compile.
if [[ -z ${BERT_JAX_TESTS_CACHE:-} ]]; then
  BERT_JAX_TESTS_CACHE=$(mktemp -d)
  export BERT_JAX_TESTS_CACHE
  trap 'rm -rf "$BERT_JAX_TESTS_CACHE"' EXIT
fi
# By file, because tests of a file share runs that take a while to make; in the order of tests/conftest.py.
"$VENV/bin/python" -m pytest -n 2 --dist=loadfile --no-loadscope-reorder -m "not slow" "$@" </dev/null
