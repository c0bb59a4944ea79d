#!/usr/bin/env bash
# Runs the tests of these folders, each with the branch coverage that it must reach, as many processes at once as there
# are cores (JOBS=1 for one), and sums up. What passed is left in .run/tests, for `make trace`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Once for all of them: several patterns test with the same models.
.venv/bin/python -m models.build
export IRIS_MODEL=$PWD/models/artifacts/saved_model/iris
exec .venv/bin/python -m serving_testing.run_tests "$@"
