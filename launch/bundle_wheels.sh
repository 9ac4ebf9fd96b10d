#!/usr/bin/env bash
# Collects the wheels that a machine without a network lacks, so that the benchmark can run there.
#
#   launch/bundle_wheels.sh --python=3.12 [--installed=FILE] [--platform=x86_64] [--accelerator=cuda13|tpu] [--output=wheels]
#
#   --python        version of Python there
#   --installed     what is installed there: the output of `pip list --format=freeze`, or names of packages, one a line. Those
#                   are left out, and versions in the file are kept to.
#   --platform      processor there: x86_64 or aarch64 (Linux)
#   --accelerator   also jax's packages for NVIDIA GPUs or for TPUs, unless installed there (hundreds of megabytes)
#   --output        a new or empty folder, or one made by this script, whose wheels are replaced
#   $PYTHON         the Python whose pip is used here; otherwise that of .venv, or python3
#
# It prints the commands for the other machine, to be run in a copy of this checkout that has the folder in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

# A line of README.txt by which the script recognizes its own folders.
marker="Collected by launch/bundle_wheels.sh."
version="" installed="" processor=x86_64 jax=jax output=wheels
for argument in "$@"; do
  case $argument in
    --help | -h)
      sed -n '2,/^set /{s/^# \{0,1\}//p}' launch/bundle_wheels.sh
      exit 0
      ;;
    --python=*) version=${argument#*=} ;;
    --installed=*) installed=${argument#*=} ;;
    --platform=*) processor=${argument#*=} ;;
    --accelerator=cuda13) jax="jax[cuda13]" ;;
    --accelerator=tpu) jax="jax[tpu]" ;;
    --output=*) output=${argument#*=} ;;
    --accelerator=*) fail "$argument is not one of cuda13, tpu" ;;
    --python | --installed | --platform | --accelerator | --output) fail "$argument: write $argument=VALUE" ;;
    *) fail "$argument: launch/bundle_wheels.sh takes --python, --installed, --platform, --accelerator=cuda13|tpu, --output" ;;
  esac
done
[[ $version =~ ^3\.(1[1-9]|[2-9][0-9])$ ]] || fail "--python=$version: set it to the version there, from 3.11, e.g. --python=3.12"
[[ $processor =~ ^(x86_64|aarch64)$ ]] || fail "--platform=$processor is not one of x86_64, aarch64"
[[ -z $installed || -f $installed ]] || fail "--installed=$installed: no such file"
if [[ -e $output && ! -d $output ]] || [[ -n $(ls -A "$output" 2>/dev/null) ]]; then
  grep -qsxF "$marker" "$output/README.txt" || fail "--output=$output: was not made by this script; choose a new folder"
fi
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip; name another: PYTHON=/path/to/python"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
target=(--python-version "$version" --implementation cp --only-binary=:all:)
for libc in 2_39 2_38 2_37 2_36 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do # pip matches these exactly, the newest first
  target+=(--platform "manylinux_${libc}_$processor")
done
target+=(--platform "manylinux2014_$processor")

# ------------------------------------------------------------------------------------------------- what is there already
# Names as in wheels, in lower case with hyphens; only lines with a version constrain what is chosen.
touch "$work/names" "$work/constraints"
if [[ -n $installed ]]; then
  sed -E 's/[[:space:]]//g; s/[=<>@].*//' "$installed" | tr 'A-Z_.' 'a-z--' | sort -u >"$work/names"
  grep -E '^[A-Za-z0-9._-]+==[^[:space:]]+$' "$installed" >"$work/constraints" || true
fi

# -------------------------------------------------------------------------------------------------------------- download
mkdir -p "$output"
rm -f "$output"/*.whl "$output/README.txt"
cat >"$output/README.txt" <<TEXT
$marker
Wheels for Python $version on Linux ($processor). On the other machine, in the checkout:

  python3 -m pip install --no-index --no-deps --target=/tmp/bert_jax_site $output/*.whl
  export PYTHONPATH=/tmp/bert_jax_site:.
  python3 tools/benchmark.py all --output=runs/benchmark --against=transformers
  BERT_JAX_TESTS_PLATFORM=cuda python3 -m pytest tests/model/test_attention*.py

The third line measures everything; --against needs torch and transformers there. The last one tests the implementations of
attention on the accelerator itself (cuda or tpu), and needs pytest and hypothesis.
TEXT
# Published only as source (the second one is needed by tensorflow-datasets). Pure Python: what is built here runs there.
"$python" -m pip wheel --quiet --no-deps --wheel-dir="$output" seqeval promise
# All of them, because pip has to see what each needs; then those that are there already are removed.
"$python" -m pip download --quiet "${target[@]}" --find-links="$output" --dest="$output" \
  -c "$work/constraints" -r requirements.txt "$jax"
for wheel in "$output"/*.whl; do
  name=$(basename "$wheel" | sed 's/-.*//' | tr 'A-Z_.' 'a-z--')
  if grep -qx "$name" "$work/names"; then
    rm "$wheel"
  fi
done
cat "$output/README.txt"
du -sh "$output"
