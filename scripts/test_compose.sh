#!/usr/bin/env bash
# For each pattern: build the images, `docker compose up --wait`, run its end-to-end tests over the published ports,
# crash containers and see them come back, remove everything; at the end, a table of images and start-up times. Beside a
# stack that runs already: project name and ports are of this run only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD

docker info >/dev/null 2>&1 || { echo "test-compose: no Docker engine answers" >&2; exit 1; }
export COMPOSE_ANSI=never COMPOSE_PROGRESS=plain
notes=$(mktemp)

# A free port of the loopback address: what is under test here is nobody else's business.
free_port() {
  echo "127.0.0.1:$(.venv/bin/python -c 'from serving_testing.processes import free_port; print(free_port())')"
}

tidy() {
  local code=$?
  trap - EXIT
  if [ -n "${COMPOSE_PROJECT_NAME-}" ]; then
    [ $code = 0 ] || { docker compose ps -a; docker compose logs --tail 50; } || true
    docker compose down --volumes --timeout 10 >/dev/null 2>&1 || true
  fi
  exit $code
}
trap tidy EXIT

# Build, start, test and remove the stack of the folder that we are in. Arguments: what pytest shall run.
test_stack() {
  local log started
  log=$(mktemp)
  docker compose build >"$log" 2>&1 || { tail -n 40 "$log" >&2; exit 1; }
  started=$(date +%s)
  docker compose up --detach --wait >"$log" 2>&1 || { tail -n 40 "$log" >&2; exit 1; }
  echo "all healthy after $(($(date +%s) - started)) s"
  PYTHONPATH=$root "$root/.venv/bin/python" -m scripts.checks.containers note "$notes" "$number${SERVING_RUNTIME:+ $SERVING_RUNTIME}"
  "$root/.venv/bin/python" -m pytest "$@"
  docker compose down --volumes --timeout 10 >"$log" 2>&1 || { tail -n 40 "$log" >&2; exit 1; }
  rm -f "$log"
}

for number in "$@"; do
  cd "$root"
  folder=$(echo "${number}"_*_pattern)
  export COMPOSE_PROJECT_NAME=test-$number-$$
  tests=(tests/e2e)
  case $number in
    02)
      GRPC=$(free_port) REST=$(free_port)
      export GRPC_BIND=127.0.0.1 REST_BIND=127.0.0.1 GRPC_PORT=${GRPC#*:} REST_PORT=${REST#*:}
      export TF_SERVING_GRPC=$GRPC TF_SERVING_REST=http://$REST SERVING_RUNTIME=portable
      tests=(tests/test_grpc_client.py tests/test_rest_client.py tests/test_compose.py)
      ;;
    03)
      for name in PROXY REDIS_PUBLISHED TF_GRPC TF_REST; do export "${name}_PORT=$(free_port)"; done
      export REDIS_PUBLISHED_PORT=${REDIS_PUBLISHED_PORT#127.0.0.1:} BASE_URL_03=http://$PROXY_PORT
      export SERVING_RUNTIME=portable RATE_LIMIT=""
      ;;
    04)
      for name in API MYSQL; do export "${name}_PORT=$(free_port)"; done
      export MYSQL_PORT=${MYSQL_PORT#127.0.0.1:} BASE_URL_04=http://$API_PORT JOB_WAIT_SECONDS=10
      ;;
    06)
      for name in PROXY SETOSA VERSICOLOR VIRGINICA; do export "${name}_PORT=$(free_port)"; done
      export BASE_URL_06=http://$PROXY_PORT
      for name in SETOSA VERSICOLOR VIRGINICA; do port=${name}_PORT && export "${name}_URL=http://${!port}"; done
      ;;
    07)
      for name in PROXY REDIS_PUBLISHED; do export "${name}_PORT=$(free_port)"; done
      export REDIS_PUBLISHED_PORT=${REDIS_PUBLISHED_PORT#127.0.0.1:} BASE_URL_07=http://$PROXY_PORT
      # Built here, where TensorFlow is at hand if the download is not: an image with it has 2 GB.
      .venv/bin/python -m models.build --only mobilenet_v2 resnet50
      export COMPOSE_FILE=docker-compose.yml:docker-compose.models.yml
      ;;
    *) echo "test-compose: nothing is known of pattern $number" >&2; exit 1 ;;
  esac
  cd "$folder"
  printf '\n\033[1m%s\033[0m\n' "$folder in containers"
  test_stack "${tests[@]}"
  if [ "$number" = 02 ]; then
    # The real image cannot be had everywhere; what is around it is tested on a stand-in, as 02's README explains.
    docker build --quiet --file tests/stand_in/Dockerfile --tag tf-serving-stand-in "$root" >/dev/null
    SERVING_RUNTIME=tf-serving TF_SERVING_IMAGE=tf-serving-stand-in test_stack "${tests[@]}"
  fi
  unset COMPOSE_PROJECT_NAME COMPOSE_FILE SERVING_RUNTIME
done

cd "$root"
printf '\n'
.venv/bin/python -m scripts.checks.containers table "$notes"
