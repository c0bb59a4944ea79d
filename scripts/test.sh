#!/usr/bin/env bash
# Runs the tests of each folder in a process of its own (every pattern has a package called `src`), as many at once as
# there are cores, with the branch coverage that each of them must reach, and sums up. What passed is left in .run/tests,
# for `make trace`.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
coverage=90
at_once=${JOBS:-$(nproc 2>/dev/null || echo 2)}
# Where this script runs in the background, SIGINT is ignored, and all processes of the tests would inherit that.
pytest='import signal, sys, pytest; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(pytest.main())'

# Once for all of them: several patterns test with the same models.
.venv/bin/python -m models.build --only iris_svc iris_svc_0_{setosa,versicolor,virginica} iris_saved_model \
  mobilenet_v2 resnet50 || exit 1
export IRIS_MODEL=$root/models/artifacts/saved_model/iris

results=$root/.run/tests
mkdir -p "$results"
for folder in "$@"; do rm -f "$results/$(basename "$folder")".*; done

# Tests of the folder $1; what they print goes to $results/NAME.log, their exit code to $results/NAME.code.
run() {
  local folder=$1 name what
  name=$(basename "$folder")
  case $folder in
    common/*) cd "$root/$folder" && what=(tests "--cov=$name") ;;
    02_*) cd "$root/$folder" && what=(tests --cov=client --cov=build_model) ;;
    models) cd "$root" && what=("$folder/tests" "--cov=$folder") ;;
    scripts) cd "$root" && what=(scripts/*/tests --cov=scripts) ;;
    *) cd "$root/$folder" && what=(tests --cov=src) ;;
  esac &&
    COVERAGE_FILE=$results/$name.coverage "$root/.venv/bin/python" -c "$pytest" "${what[@]}" --rootdir="$root" \
      --junit-xml="$results/$name.xml" -o junit_family=xunit1 \
      --cov-config="$root/pyproject.toml" --cov-fail-under=$coverage >"$results/$name.log" 2>&1
  echo $? >"$results/$name.code"
}

# A folder's whole output, once it has ended, so that those of two do not mix.
show() {
  local folder=$1
  printf '\n\033[1m%s\033[0m\n' "$folder"
  cat "$results/$(basename "$folder").log"
}

started=$SECONDS
waiting=("$@")
running=()
while [ ${#waiting[@]} -gt 0 ] || [ ${#running[@]} -gt 0 ]; do
  while [ ${#waiting[@]} -gt 0 ] && [ ${#running[@]} -lt "$at_once" ]; do
    printf '==> testing %s\n' "${waiting[0]}"
    run "${waiting[0]}" &
    running+=("${waiting[0]}")
    waiting=("${waiting[@]:1}")
  done
  wait -n
  still=()
  for folder in "${running[@]}"; do
    if [ -f "$results/$(basename "$folder").code" ]; then show "$folder"; else still+=("$folder"); fi
  done
  running=(${still[@]+"${still[@]}"})
done

failed=0
printf '\n'
for folder in "$@"; do
  log=$results/$(basename "$folder").log
  covered=$(sed -n 's/^TOTAL.* \([0-9]*%\)$/\1/p' "$log")
  result=$(sed -n 's/^=* \(.*[0-9] \(passed\|failed\|error\).*\) in \(.*s\).*$/\1 in \3/p' "$log" | tail -n 1)
  state=ok
  [ "$(cat "${log%.log}.code")" = 0 ] || state=FAILED failed=1
  printf '%-38s %-9s coverage %-5s %s\n' "$folder" "$state" "${covered:-?}" "$result"
done
printf 'in %d min %02d s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60))
exit $failed
