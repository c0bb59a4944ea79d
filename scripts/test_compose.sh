#!/usr/bin/env bash
# For each pattern: build the images, `docker compose up --wait`, run its end-to-end tests over the published ports,
# crash containers and check that they come back, remove everything; at the end, a table of images and start-up times.
# Project name and ports are of this run only, so that another stack may run beside it. A pattern's tests/compose.sh
# says which ports, variables and tests: it is sourced in the pattern's folder, and calls test_stack.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD

docker info >/dev/null 2>&1 || { echo "test-compose: no Docker engine answers" >&2; exit 1; }
export COMPOSE_ANSI=never COMPOSE_PROGRESS=plain
notes=$(mktemp)

# Export a free port of the loopback address under each of these names.
free_ports() {
  local name
  for name in "$@"; do
    export "$name=$("$root/.venv/bin/python" -c 'from serving_testing.processes import free_port; print(free_port())')"
  done
}

# Run a command; print the end of its output only if it fails.
quietly() {
  "$@" >"$log" 2>&1 || { tail -n 40 "$log" >&2; exit 1; }
}

# Volumes go as well, so nothing has to be saved first.
remove() {
  docker compose down --volumes --timeout 1
}

tidy() {
  local code=$?
  [ $code = 0 ] || { docker compose ps -a; docker compose logs --tail 50; } || true
  remove >/dev/null 2>&1 || true
  rm -f "$log"
  exit $code
}

# Build, start, test and remove the stack of the folder that we are in. Arguments: what pytest runs.
test_stack() {
  local started=$SECONDS built
  quietly docker compose build
  built=$SECONDS
  quietly docker compose up --detach --wait
  echo "built in $((built - started)) s, all healthy $((SECONDS - built)) s later"
  PYTHONPATH=$root "$root/.venv/bin/python" -m scripts.checks.containers note "$notes" "$number${SERVING_RUNTIME:+ $SERVING_RUNTIME}"
  "$root/.venv/bin/python" -m pytest "$@"
  quietly remove
}

for number in "$@"; do
  cd "$root/$(echo "${number}"_*_pattern)"
  printf '\n\033[1m%s\033[0m\n' "${PWD##*/} in containers"
  (
    export COMPOSE_PROJECT_NAME=test-$number-$$
    log=$(mktemp)
    trap tidy EXIT
    # shellcheck source=/dev/null
    . tests/compose.sh
  )
  cd "$root"
done

printf '\n'
.venv/bin/python -m scripts.checks.containers table "$notes" ${SAMPLE:+"$SAMPLE/containers.json"}
rm -f "$notes"
