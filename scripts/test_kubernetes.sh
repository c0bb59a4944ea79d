#!/usr/bin/env bash
# Proves the Kubernetes manifests without a cluster: renders every overlay with the real kubectl, validates the objects
# against the schemas of the API and of the CRDs, runs the repository's own rules with their mutants, and checkov.
# Tools are installed into .run/kubernetes, apart from .venv. What cannot be installed is skipped, and says so.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tests=scripts/checks/tests/kubernetes
run=$PWD/.run/kubernetes
npm=(@kubernetes-models/gateway-api@2.0.0 @kubernetes-models/external-secrets@2.0.0)
failed=0 skipped=0
mkdir -p "$run"

say() { printf '\033[1;34m==>\033[0m %s\n' "$1"; }
skip() { echo "SKIPPED: $1"; skipped=$((skipped + 1)); }

# An environment of its own for these requirements, once: checkov's would not fit beside ours.
environment() {
  local folder=$run/$1 wanted
  shift
  wanted=$(cat "${@/#-r/}" 2>/dev/null; echo "$*")
  [ "$(cat "$folder/.installed" 2>/dev/null)" = "$wanted" ] && return
  .venv/bin/uv venv --quiet --clear --python .venv/bin/python "$folder" &&
    VIRTUAL_ENV=$folder .venv/bin/uv pip install --quiet "$@" && echo "$wanted" >"$folder/.installed"
}

say "installing the tools"
environment checkov checkov==3.3.30 >"$run/checkov.log" 2>&1 &
checkov=$!
if command -v node >/dev/null && command -v npm >/dev/null; then
  [ -d "$run/npm/node_modules/@kubernetes-models/external-secrets" ] ||
    npm install --silent --no-audit --no-fund --prefix "$run/npm" "${npm[@]}" >"$run/npm.log" 2>&1 &
else
  echo "there is neither node nor npm" >"$run/npm.log"
  false &
fi
npm=$!
if ! environment tools -r "$tests/requirements.txt" >"$run/tools.log" 2>&1; then
  skip "kubectl cannot be installed ($(tail -n 1 "$run/tools.log"))"
  exit 0
fi

say "rendering every overlay"
rm -rf "$run/rendered"
mkdir "$run/rendered"
for overlay in [0-9][0-9]_*_pattern/kubernetes/overlays/*/; do
  pattern=${overlay%%/*}
  "$run/tools/bin/kubectl" kustomize "$overlay" >"$run/rendered/${pattern:0:2}-$(basename "$overlay").yaml" || failed=1
done
# The two other ways to the models are in no overlay.
for component in models-volume models-image-volume; do
  mkdir -p "$run/$component"
  printf 'namespace: batch\nresources: [../../../%s]\ncomponents: [../../../deploy/kubernetes/components/%s]\n' \
    04_batch_pattern/kubernetes/base "$component" >"$run/$component/kustomization.yaml"
  "$run/tools/bin/kubectl" kustomize "$run/$component" >"$run/rendered/04-$component.yaml" || failed=1
done
[ $failed = 0 ] || exit 1

say "schemas of the API and of KEDA's and Prometheus's CRDs"
"$run/tools/bin/python" "$tests/schemas.py" "$run/rendered" >"$run/schemas.log" 2>&1 &
schemas=$!

say "own rules, and a mutant for each"
.venv/bin/python -m pytest -q "$tests" || failed=1
wait $schemas || failed=1
cat "$run/schemas.log"

say "schemas of the Gateway API's and External Secrets' CRDs"
if wait $npm; then
  node "$tests/schemas.mjs" "$run/npm/node_modules" "$run/rendered/npm.json" || failed=1
else
  skip "its schemas cannot be installed ($(tail -n 1 "$run/npm.log"))"
fi

say checkov
if wait $checkov; then
  "$run/checkov/bin/checkov" --config-file "$tests/checkov.yaml" --directory "$run/rendered" && echo "no findings" || failed=1
else
  skip "it cannot be installed ($(tail -n 1 "$run/checkov.log"))"
fi
[ $skipped = 0 ] || echo "$skipped of the steps above were skipped"
exit $failed
