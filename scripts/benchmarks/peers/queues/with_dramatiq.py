# /// script
# dependencies = ["dramatiq[redis]==2.2.1", "redis==8.1.0", "grpcio==1.85.3", "tfserving-protos"]
#
# [tool.uv.sources]
# tfserving-protos = { path = "../../../../common/tfserving_protos" }
#
# [tool.peer]
# name = "dramatiq"
# settings = """\
#   acknowledged after the actor has ended; heartbeat_timeout 10 s instead of 60, looked at by one command in 10 \
#   (maintenance_chance) instead of one in 1,000; one process, two threads"""
# docs = "https://dramatiq.io/reference.html#dramatiq.brokers.redis.RedisBroker"
# worker = ["-m", "dramatiq", "with_dramatiq", "--processes=1", "--threads=2"]
# redelivery_s = 60
# ///
"""Argument: how many jobs to submit."""

import sys

import dramatiq
import work
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=work.REDIS_URL, heartbeat_timeout=10_000, maintenance_chance=100_000))
predict = dramatiq.actor(actor_name="predict")(work.predict)

if __name__ == "__main__":
    for job in range(int(sys.argv[1])):
        predict.send(job)
