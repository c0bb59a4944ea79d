# Sourced by `make test-compose`: ports, variables, and the tests to run against the containers.
for name in PROXY SETOSA VERSICOLOR VIRGINICA; do
  free_ports port
  export "${name}_PORT=127.0.0.1:$port" "${name}_URL=http://127.0.0.1:$port"
done
export BASE_URL_06=$PROXY_URL
test_stack tests/e2e
