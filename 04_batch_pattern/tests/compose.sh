# Sourced by `make test-compose`: ports, variables, and the tests to run against the containers.
free_ports API MYSQL_PORT
export API_PORT=127.0.0.1:$API
export BASE_URL_04=http://$API_PORT
# Docker waits longer and longer before it restarts a container that ran for less than 10 s.
export JOB_WAIT_SECONDS=10
test_stack tests/e2e
