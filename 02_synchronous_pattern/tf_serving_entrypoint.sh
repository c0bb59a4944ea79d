#!/usr/bin/env bash
# tensorflow_model_server を環境変数の設定で起動する。exec により、停止の合図がサーバーに直接届く。
set -euo pipefail

exec tensorflow_model_server \
  --port="${PORT:-8500}" \
  --rest_api_port="${REST_API_PORT:-8501}" \
  --model_name="${MODEL_NAME:-iris}" \
  --model_base_path="${MODEL_BASE_PATH:-/models/iris}" \
  ${MONITORING_CONFIG_FILE:+"--monitoring_config_file=$MONITORING_CONFIG_FILE"} \
  "$@"
