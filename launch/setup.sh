#!/usr/bin/env bash
# Makes the virtual environment and installs the requirements and this checkout in it, the latter in editable mode, so that
# `bert-jax` and `python tools/x.py` work from any folder; done at once when nothing has changed.
#
#   launch/setup.sh [--dev] [--serve] [--accelerator=cuda13|tpu]
#
#   --dev           also what the tests and the checks need
#   --serve         also what bert_jax.serve needs
#   --accelerator   jax for NVIDIA GPUs or for TPUs; without it, for CPUs
#   $PYTHON         the interpreter; otherwise the newest of python3.13, python3.12, python3.11 and python3 that will do
#   $VENV           the folder of the environment; otherwise .venv in the checkout. If several checkouts share one, it holds
#                   the checkout that was set up last.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

files=(requirements.txt)
extra=""
for argument in "$@"; do
  case $argument in
    --dev)
      files+=(requirements-serve.txt requirements-clean.txt requirements-cloud.txt)
      files+=(requirements-wikipedia.txt requirements-dev.txt)
      ;;
    --serve) files+=(requirements-serve.txt) ;;
    --accelerator=cuda13) extra=cuda ;; # extras of the package, see setup.py
    --accelerator=tpu) extra=tpu ;;
    *) fail "$argument: launch/setup.sh takes --dev, --serve and --accelerator=cuda13|tpu" ;;
  esac
done
venv=${VENV:-.venv}

# ------------------------------------------------------------------------------------------------------------- a Python
is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 # pyenv has shims for what is not there
}

find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is no Python of version 3.11 or later; name another"
    echo "$PYTHON"
    return
  fi
  for candidate in python3.13 python3.12 python3.11 python3; do
    if is_new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python of version 3.11 or later found; install one, or name it: PYTHON=/path/to/python launch/setup.sh"
}

# ------------------------------------------------------------------------------------------------------ the environment
# The stamp has a line for everything that is installed, so what was made with --dev serves without it as well.
stamp=$venv/requirements.stamp
wanted=$(cksum "${files[@]}" pyproject.toml setup.py)$'\n'$PWD${extra:+$'\n'$extra}
if [[ -x $venv/bin/python && -z ${PYTHON:-} && -f $stamp ]] && ! grep -qvxFf "$stamp" <<<"$wanted"; then
  exit 0
fi

if [[ -e $venv ]]; then
  is_new_enough "$venv/bin/python" || fail "$venv: no working Python of version 3.11 or later in it; remove the folder"
  if [[ -n ${PYTHON:-} ]]; then
    version='import sys; print(sys.version_info[:3])'
    [[ $("$venv/bin/python" -c "$version") == "$(find_python >/dev/null && "$PYTHON" -c "$version")" ]] ||
      fail "$venv: made with another Python than PYTHON=$PYTHON; remove the folder, or unset PYTHON"
  fi
else
  python=$(find_python)
  echo "making $venv with $("$python" --version)" >&2
  if command -v uv >/dev/null; then
    uv venv --quiet --python "$("$python" -c 'import sys; print(sys.executable)')" "$venv"
  elif ! "$python" -m venv "$venv"; then
    rm -rf "$venv"
    fail "$python cannot make a virtual environment; install its module venv (Debian: python3-venv), or uv"
  fi
fi

echo "installing ${files[*]} $extra" >&2
requirements=(-e ".${extra:+[$extra]}")
for file in "${files[@]}"; do
  requirements+=(-r "$file")
done
if command -v uv >/dev/null; then
  # Compiled, as pip does it: the first start is as fast as the others, and so are all where Python may write no bytecode.
  uv pip install --quiet --compile-bytecode --python "$venv/bin/python" "${requirements[@]}"
else
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check "${requirements[@]}" # -qq: errors only, no warnings
fi
echo "$wanted" >"$stamp"
