# Sourced by `make test-compose`: ports, variables, and the tests to run against the containers.
free_ports PROXY REDIS_PUBLISHED_PORT
export PROXY_PORT=127.0.0.1:$PROXY
export BASE_URL_07=http://$PROXY_PORT
# Built on the host, where TensorFlow is installed if the download is impossible: an image with it has 2 GB.
(cd .. && .venv/bin/python -m models.build --only mobilenet_v2 resnet50)
export COMPOSE_FILE=docker-compose.yml:docker-compose.models.yml
test_stack tests/e2e
