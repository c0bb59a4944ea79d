#!/usr/bin/env bash
# Runs the tests of each folder in a process of its own (every pattern has a package called `src`), with the branch
# coverage that each of them must reach, and sums up.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
coverage=90
# Where this script runs in the background, SIGINT is ignored, and all processes of the tests would inherit that.
pytest='import signal, sys, pytest; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(pytest.main())'
failed=0
summary=()

# Once for all of them: several patterns test with the same models.
.venv/bin/python -m models.build --only iris_svc iris_svc_0_{setosa,versicolor,virginica} iris_saved_model \
  mobilenet_v2 resnet50 || exit 1
export IRIS_MODEL=$root/models/artifacts/saved_model/iris

for folder in "$@"; do
  case $folder in
    common) cd "$root/common" && what=(tests --cov=serving_common) ;;
    tfserving_protos) cd "$root/$folder" && what=(tests --cov=tfserving_protos) ;;
    02_*) cd "$root/$folder" && what=(tests --cov=src --cov=client) ;;
    models | scripts) cd "$root" && what=("$folder/tests" "--cov=$folder") ;;
    *) cd "$root/$folder" && what=(tests --cov=src) ;;
  esac || exit 1
  printf '\n\033[1m%s\033[0m\n' "$folder"
  log=$(mktemp)
  "$root/.venv/bin/python" -c "$pytest" "${what[@]}" --cov-config="$root/pyproject.toml" --cov-fail-under=$coverage 2>&1 | tee "$log"
  code=${PIPESTATUS[0]}
  [ "$code" = 0 ] || failed=1
  covered=$(sed -n 's/^TOTAL.* \([0-9]*%\)$/\1/p' "$log")
  result=$(sed -n 's/^=* \(.*[0-9] \(passed\|failed\|error\).*\) in \(.*s\).*$/\1 in \3/p' "$log" | tail -n 1)
  summary+=("$(printf '%-38s %-9s coverage %-5s %s' "$folder" "$([ "$code" = 0 ] && echo ok || echo FAILED)" "${covered:-?}" "$result")")
  rm -f "$log"
done

printf '\n'
printf '%s\n' "${summary[@]}"
exit $failed
