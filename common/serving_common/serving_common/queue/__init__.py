"""A job queue on plain Redis lists that loses no job: `client.JobQueue` for callers, `worker.Worker` for workers.

    enqueue          claim                complete
    ───────▶ pending ─────▶ processing ──────────▶ completed
                ▲               │  │ too many failures, or its worker died too often
                └───────────────┘  └────▶ failed ──redrive──▶ pending
          retried, requeued, or       cancel, from pending or processing ──▶ cancelled
          its worker died

`completed`, `failed` and `cancelled` are final: a later outcome changes nothing. Each arrow is one command of
commands.lua, so a crash falls between arrows, never within one:

| a crash after …      | leaves                                       | and then                                       |
|----------------------|----------------------------------------------|------------------------------------------------|
| the id is drawn      | nothing                                      | the caller has no id and tries again           |
| enqueue              | a pending job                                | it runs, whether or not the caller got its id  |
| claim                | the id in its worker's list                  | the reaper requeues it at the front, in order  |
| the model's answer   | the same                                     | it runs again, which is harmless               |
| complete, fail       | result, status, no claim                     | nothing is left to do                          |

So a job runs at least once and ends once. A job that was in flight when its worker or the model server died is
quarantined: it runs before all others, and alone. A job that fails for good stays in the list of dead letters. Keys
(`{queue}` as in `queue:predict`; each pattern's `JobKeys` name data, result and status). Lists have no TTL, everything
else has:

| key                           | type   | holds                                                                |
|-------------------------------|--------|----------------------------------------------------------------------|
| `{queue}`                     | list   | waiting ids of normal priority; pushed left, taken right             |
| `{queue}:high`                | list   | waiting ids of high priority                                         |
| `{queue}:suspects`            | list   | waiting ids in quarantine                                            |
| `{queue}:suspect`             | string | the quarantined id last claimed: only one at a time is in flight     |
| `{queue}:processing:{worker}` | list   | ids that this worker has claimed and not finished, newest first      |
| `{queue}:workers`             | list   | workers that may have such a list                                    |
| `{queue}:dead`                | list   | dead letters, newest first; the last 10,000                          |
| `{queue}:heartbeat:{worker}`  | string | exists as long as the worker lives                                   |
| `{queue}:jobs`                | zset   | id by time of creation in µs: for the listing and for ages           |
| `{queue}:once:{key}`          | string | `id digest` of the job that was enqueued under an idempotency key    |
| `{queue}:meta:{id}`           | hash   | priority, attempts, deaths, alone, error, requeued (when, in µs),    |
|                               |        | context (request id and traceparent): only what is not default       |
| `{queue}:ended`               | –      | channel that announces the ids of jobs that have ended               |
"""
