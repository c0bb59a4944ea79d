#!/usr/bin/env bash
# Regenerates constraints.txt: every direct and indirect dependency of every part of the repository, for all platforms.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=$(command -v uv || echo .tools/bin/uv)
{
  echo "# All versions, for every platform and Python 3.11 to 3.13. Made by \`make lock\`; do not edit."
  "$uv" pip compile --universal --python-version 3.11 --quiet --no-header --no-annotate --no-emit-package serving-common \
    --no-emit-package serving-testing --no-emit-package tfserving-protos --no-emit-package portable-model-server \
    --all-extras --group dev common/*/pyproject.toml models/pyproject.toml [0-9][0-9]_*_pattern/pyproject.toml
} > constraints.txt.new
mv constraints.txt.new constraints.txt
