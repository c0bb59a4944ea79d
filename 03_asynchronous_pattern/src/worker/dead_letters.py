"""Handles dead letters, the jobs that failed for good.

`python -m src.worker.dead_letters list | show ID… | redrive ID… | discard ID…`, or `--all` instead of ids.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

import orjson

from serving_common.errors import StartupError
from serving_common.queue.client import JobQueue
from serving_common.queue.types import JobId, JobNotFound
from serving_common.redis import QueueUnavailable, connect
from serving_common.settings import load
from src.configurations import QueueSettings

DONE = {"redrive": "redriven", "discard": "discarded", "replay": "replayed", "purge": "purged"}
DEPRECATED = {"replay": "redrive", "purge": "discard"}


async def show(queue: JobQueue, job_id: JobId) -> dict[str, str | None]:
    """Error and input of a job. Raises JobNotFound."""
    state = await queue.get(job_id)
    data = await queue.data(job_id)
    return {"job_id": job_id, "status": state.status, "error": state.error, "data": data.decode() if data else None}


async def run(options: argparse.Namespace, settings: QueueSettings) -> int:
    """Run the action on the chosen jobs; returns the number of jobs for which it was impossible."""
    missed = 0
    async with connect(settings) as redis:
        queue = JobQueue(redis, settings.keys, ttl_s=settings.result_ttl_s)
        chosen = await queue.dead_letters() if options.all else [JobId(each) for each in options.ids]
        for job_id in chosen:
            if options.action == "show":
                try:
                    line = orjson.dumps(await show(queue, job_id)).decode()
                except JobNotFound:
                    line, missed = f"{job_id}: expired or unknown", missed + 1
            else:
                is_redrive = DEPRECATED.get(options.action, options.action) == "redrive"
                line = f"{job_id}: {DONE[options.action]}"
                if not await (queue.redrive(job_id) if is_redrive else queue.discard(job_id)):
                    line, missed = f"{job_id}: is not in the list, or has expired", missed + 1
            print(line)  # noqa: T201 - the command's output
    return missed


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line. Exit code 1 if Redis does not answer, or one of the jobs does not exist."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["list", "show", *DONE])
    parser.add_argument("ids", nargs="*", metavar="ID")
    parser.add_argument("--all", action="store_true", help="every dead letter")
    options = parser.parse_args(arguments)
    if options.action == "list":
        options.action, options.all = "show", True
    elif not options.ids and not options.all:
        parser.error("give the ids of jobs, or --all")
    if replacement := DEPRECATED.get(options.action):
        print(f"`{options.action}` is deprecated: use `{replacement}`", file=sys.stderr)  # noqa: T201
    try:
        missed = asyncio.run(run(options, load(QueueSettings)))
    except (QueueUnavailable, StartupError) as exc:
        sys.exit(f"error: {exc}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
