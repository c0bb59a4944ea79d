# /// script
# dependencies = ["celery[redis]==5.7.0", "redis==8.1.0", "grpcio==1.85.3", "tfserving-protos"]
#
# [tool.uv.sources]
# tfserving-protos = { path = "../../../../common/tfserving_protos" }
#
# [tool.peer]
# name = "Celery"
# settings = """\
#   acks_late and task_reject_on_worker_lost; visibility_timeout 10 s instead of an hour, looked at every 5 s \
#   instead of 100; two prefork children, prefetch of one each"""
# docs = "https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/redis.html#visibility-timeout"
# worker = ["-m", "celery", "-A", "with_celery", "worker", "--concurrency=2", "--loglevel=WARNING"]
# redelivery_s = 30
# ///
"""Argument: how many jobs to submit."""

import sys

import work
from celery import Celery

app = Celery(broker=work.REDIS_URL)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={
        "visibility_timeout": 10,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
    },
)
predict = app.task(name="predict")(work.predict)

if __name__ == "__main__":
    for job in range(int(sys.argv[1])):
        predict.delay(job)
