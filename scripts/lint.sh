#!/usr/bin/env bash
# Every check that needs no running code. mypy goes folder by folder: every pattern has a package called `src`.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
bin=$root/.venv/bin
failed=0

say() { printf '\033[1;34m==>\033[0m %s\n' "$1"; }
step() {
  say "$1"
  shift
  "$@" || failed=1
}
# Types of every folder, for one version of Python. One cache for all folders: third-party stubs are read once.
types() {
  local version=$1 folder parts part failed=0
  for folder in . common/*/ [0-9][0-9]_*_pattern; do
    folder=${folder%/}
    parts=(models scripts deploy)
    if [ "$folder" != . ]; then
      parts=()
      for part in "$(basename "$folder")" hatch_build.py src client build_model.py tests; do
        [ ! -e "$folder/$part" ] || parts+=("$part")
      done
    fi
    printf '%s, Python %s: ' "$folder" "$version"
    (cd "$folder" && MYPYPATH=. "$bin/mypy" --explicit-package-bases --config-file "$root/pyproject.toml" \
      --cache-dir "$root/.mypy_cache" --python-version "$version" "${parts[@]}" 2>&1) || failed=1
  done
  return $failed
}

mkdir -p .mypy_cache
timeout 120 "$bin/pip-audit" --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off \
  >.mypy_cache/audit.log 2>&1 & # waits for the network most of the time
audit=$!

step ruff "$bin/ruff" check .
step black "$bin/black" --check --quiet .
say "mypy, for the oldest and the newest Python that is supported"
types 3.11 >.mypy_cache/3.11.log &
older=$!
types 3.13 || failed=1
wait $older || failed=1
cat .mypy_cache/3.11.log

say actionlint
if [ -x "$bin/actionlint" ] || VIRTUAL_ENV=$root/.venv timeout 20 "$bin/uv" pip install --quiet --group actionlint 2>/dev/null; then
  "$bin/actionlint" || failed=1
else
  echo "SKIPPED: its program cannot be downloaded"
fi

say pip-audit
wait $audit
audited=$?
# Only its data can tell; a machine that cannot reach it has no verdict, which is not a failure.
if [ $audited = 0 ]; then
  cat .mypy_cache/audit.log
elif grep -q "known vulnerabilit" .mypy_cache/audit.log; then
  cat .mypy_cache/audit.log
  failed=1
else
  echo "SKIPPED: the advisory data cannot be reached ($(tail -n 1 .mypy_cache/audit.log | cut -c 1-150))"
fi
exit $failed
