"""A queue of jobs on plain Redis lists that loses nothing: `JobQueue` for those who ask, `Worker` for those who do.

    enqueue          claim                complete
    ───────▶ pending ─────▶ processing ──────────▶ completed
                ▲               │  │ too many failures, or killed its worker too often
                └───────────────┘  └────▶ failed ──replay──▶ pending
           retried, given back, or     cancel, from pending or processing ──▶ cancelled
           its worker has died

`completed`, `failed` and `cancelled` are final: whoever comes second changes nothing. Each arrow is one call of
queue.lua, so a crash falls between arrows and never within one:

| a crash after …      | leaves                                       | and then                                       |
|----------------------|----------------------------------------------|------------------------------------------------|
| the id is drawn      | nothing                                      | the caller has no id and asks again            |
| enqueue              | a pending job                                | it runs, whether or not the caller got its id  |
| claim                | the id in its worker's list                  | the reaper puts it before all others, in order |
| the model's answer   | the same                                     | it runs again, which is harmless               |
| complete, fail       | result, status, no claim                     | nothing is left to do                          |

So a job runs at least once and ends once. Keys (`{queue}` as in `queue:predict`; data, result and status are named by
each pattern's `JobKeys`). Lists have no TTL, everything else has:

| key                           | type   | holds                                                                |
|-------------------------------|--------|----------------------------------------------------------------------|
| `{queue}`                     | list   | waiting ids of normal priority; pushed left, taken right             |
| `{queue}:high`                | list   | waiting ids of high priority                                         |
| `{queue}:suspects`            | list   | waiting ids that were in hand when a worker or the model server died |
| `{queue}:suspect`             | string | the one of these that was last taken: no two are in hand at once     |
| `{queue}:processing:{worker}` | list   | ids that this worker has taken and not finished, the newest first    |
| `{queue}:workers`             | list   | workers that may have such a list                                    |
| `{queue}:dead`                | list   | ids that failed for good, the newest first; the last 10,000          |
| `{queue}:heartbeat:{worker}`  | string | there as long as the worker lives                                    |
| `{queue}:jobs`                | zset   | id by time of creation in µs: for the listing and for ages           |
| `{queue}:once:{key}`          | string | `id digest` of the job that was enqueued under an idempotency key    |
| `{queue}:meta:{id}`           | hash   | priority, attempts, deaths, alone, error: only what is not usual     |
| `{queue}:ended`               | –      | channel on which ids are announced whose jobs have ended             |
"""
