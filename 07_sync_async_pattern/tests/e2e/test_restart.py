"""In containers: a worker that crashes is restarted, and the jobs that it had claimed are completed."""

from serving_testing.compose import crash, only_against_compose, wait_until_restarted

IMAGES = 60

pytestmark = only_against_compose("BASE_URL_07")


def test_killed_worker_restarts_and_no_job_is_lost(proxy):
    ids = [proxy.get("/predict/test").json()["job_id"] for _ in range(IMAGES)]
    container = crash("worker")
    for job_id in ids:
        entry = proxy.get(f"/job/{job_id}", params={"wait": 30}).json()[job_id]
        assert entry["prediction"], entry
        assert "error" not in entry
    wait_until_restarted(container)
