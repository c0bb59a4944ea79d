#!/usr/bin/env bash
# Every check that needs no running code. mypy goes folder by folder: every pattern has a package called `src`.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
bin=$root/.venv/bin
failed=0

step() {
  printf '\033[1;34m==>\033[0m %s\n' "$1"
  shift
  "$@" || failed=1
}
types() { (cd "$1" && shift && MYPYPATH=. "$bin/mypy" --explicit-package-bases --config-file "$root/pyproject.toml" "$@"); }

step ruff "$bin/ruff" check .
step black "$bin/black" --check --quiet .
step "mypy models scripts" types . models scripts
for package in common/*; do
  parts=("$(basename "$package")" tests)
  [ ! -e "$package/hatch_build.py" ] || parts+=(hatch_build.py)
  step "mypy $package" types "$package" "${parts[@]}"
done
for pattern in 0*_pattern; do
  parts=()
  for part in src client build_model.py tests; do [ ! -e "$pattern/$part" ] || parts+=("$part"); done
  step "mypy $pattern" types "$pattern" "${parts[@]}"
done

printf '\033[1;34m==>\033[0m pip-audit\n'
# Only its data can tell; a machine that cannot reach them has no verdict, which is not a failure.
if out=$(timeout 120 "$bin/pip-audit" --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off 2>&1); then
  echo "$out"
elif grep -q "known vulnerabilit" <<<"$out"; then
  echo "$out"
  failed=1
else
  echo "SKIPPED: the advisory data cannot be reached ($(tail -n 1 <<<"$out" | cut -c 1-150))"
fi
exit $failed
