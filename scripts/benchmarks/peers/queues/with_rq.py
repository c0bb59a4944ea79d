# /// script
# dependencies = ["rq==3.0.0", "redis==8.1.0", "grpcio==1.85.3", "tfserving-protos"]
#
# [tool.uv.sources]
# tfserving-protos = { path = "../../../../common/tfserving_protos" }
#
# [tool.peer]
# name = "RQ"
# settings = """\
#   Retry(max=3), so that the registry of started jobs requeues an abandoned one; job_monitoring_interval 1 s \
#   instead of 30 (60 s are added to it, fixed), maintenance every 5 s instead of 10 min; two workers, which fork \
#   for each job"""
# docs = "https://python-rq.org/docs/exceptions/"
# worker = ["with_rq.py"]
# redelivery_s = 180
# at_most = 2_000
# ///
"""Argument: how many jobs to submit; none: two workers."""

import sys
from multiprocessing import get_context

import work
from redis import Redis
from rq import Queue, Retry, Worker


def run_worker() -> None:
    queue = Queue(connection=Redis.from_url(work.REDIS_URL))
    # An idle worker sees to abandoned jobs after worker_ttl - 15 s.
    Worker([queue], worker_ttl=20, job_monitoring_interval=1, maintenance_interval=5).work(logging_level="WARNING")


if __name__ == "__main__" and len(sys.argv) > 1:
    queue = Queue(connection=Redis.from_url(work.REDIS_URL))
    for job in range(int(sys.argv[1])):
        queue.enqueue(work.predict, job, retry=Retry(max=3), result_ttl=0)
elif __name__ == "__main__":
    workers = [get_context("fork").Process(target=run_worker) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
