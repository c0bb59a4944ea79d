# Sourced by `make test-compose`: ports, variables, and the tests to run against the containers.
free_ports PROXY REDIS_PUBLISHED_PORT TF_GRPC TF_REST
export PROXY_PORT=127.0.0.1:$PROXY TF_GRPC_PORT=127.0.0.1:$TF_GRPC TF_REST_PORT=127.0.0.1:$TF_REST
export BASE_URL_03=http://$PROXY_PORT SERVING_RUNTIME=portable RATE_LIMIT=""
test_stack tests/e2e
