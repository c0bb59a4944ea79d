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
# Types of what a folder holds, for one version of Python. Its output is kept together: others run at the same time.
types() {
  local version=${1%% *} folder=${1#* } parts=(models scripts) part out code
  if [ "$folder" != . ]; then
    parts=()
    for part in "$(basename "$folder")" hatch_build.py src client build_model.py tests; do
      [ ! -e "$folder/$part" ] || parts+=("$part")
    done
  fi
  out=$(cd "$folder" && MYPYPATH=. "$bin/mypy" --explicit-package-bases --config-file "$root/pyproject.toml" \
    --python-version "$version" "${parts[@]}" 2>&1)
  code=$?
  printf '%s\n' "$(say "mypy $folder, Python $version")" "$out"
  return $code
}
export -f say types
export root bin

step ruff "$bin/ruff" check .
step black "$bin/black" --check --quiet .
# The oldest and the newest Python that is supported.
for version in 3.11 3.13; do
  for folder in . common/*/ [0-9][0-9]_*_pattern; do printf '%s\0' "$version ${folder%/}"; done
done | xargs -0 -n 1 -P "$(nproc 2>/dev/null || echo 2)" bash -c 'types "$0"' || failed=1

say actionlint
if [ -x "$bin/actionlint" ] || VIRTUAL_ENV=$root/.venv timeout 20 "$bin/uv" pip install --quiet --group actionlint 2>/dev/null; then
  "$bin/actionlint" || failed=1
else
  echo "SKIPPED: its program cannot be downloaded"
fi

say pip-audit
# Only its data can tell; a machine that cannot reach it has no verdict, which is not a failure.
if out=$(timeout 120 "$bin/pip-audit" --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off 2>&1); then
  echo "$out"
elif grep -q "known vulnerabilit" <<<"$out"; then
  echo "$out"
  failed=1
else
  echo "SKIPPED: the advisory data cannot be reached ($(tail -n 1 <<<"$out" | cut -c 1-150))"
fi
exit $failed
