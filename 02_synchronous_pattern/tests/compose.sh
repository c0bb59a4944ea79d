# make test-compose が読み込む: ポート、変数、コンテナに対して実行するテスト。
free_ports GRPC_PORT REST_PORT
export GRPC_BIND=127.0.0.1 REST_BIND=127.0.0.1
export TF_SERVING_GRPC=127.0.0.1:$GRPC_PORT TF_SERVING_REST=http://127.0.0.1:$REST_PORT
tests=(tests/test_grpc_client.py tests/test_rest_client.py tests/test_compose.py)

export SERVING_RUNTIME=portable
test_stack "${tests[@]}"

# 本物のイメージはどこでも手に入るわけではない。その周りにあるものは代役で試す(README を参照)。
docker build --quiet --file tests/stand_in/Dockerfile --tag tf-serving-stand-in .. >/dev/null
export SERVING_RUNTIME=tf-serving TF_SERVING_IMAGE=tf-serving-stand-in
test_stack "${tests[@]}"
