"""The batch job, `python -m src.task.job`: predicts everything that is registered by now, chunk by chunk.

wait ─► claim a chunk ─► 4 threads, one model run per slice ─► store it in one UPDATE ─► commit ─► nothing left: exit
              ▲                                                                            │
              └────────────────────────────────────────────────────────────────────────────┘

A claim is a row lock (FOR UPDATE SKIP LOCKED): any number of jobs share the rows, and when a job dies, the rollback
releases its claims for the next one.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import structlog

from serving_common import logs, tracing
from serving_common.errors import ServingError, StartupError
from serving_common.settings import load
from serving_common.tracing import INTERNAL
from src.configurations import JobSettings
from src.constants import CHUNK_ATTEMPTS, CHUNK_GROUPS, CHUNK_RETRY_DELAY_S
from src.db import cruds
from src.db.database import Database, open_database
from src.db.failures import TransactionConflict, with_cause
from src.ml.metadata import read_card
from src.ml.prediction import BatchPredictor
from src.task import metrics
from src.task.progress import Progress
from src.task.worker import Outcome, predict_all

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What all chunks of one run share."""

    run_id: int
    rows: cruds.RowRange
    row_filter: cruds.Filter
    is_repredicting: bool
    database: Database
    predictor: BatchPredictor
    executor: Executor
    settings: JobSettings


def predict_chunk(batch: Batch, after_id: int) -> Outcome | None:
    """Predict the next chunk after this id in one transaction: all of it is stored, or nothing. None: no rows left."""
    with batch.database.transaction(write=True) as db:
        rows = cruds.claim_items(db, batch.row_filter, after_id, batch.rows.last_id, batch.settings.batch_chunk_size)
        if not rows:
            return None
        outcome = predict_all(batch.executor, batch.predictor, rows, batch.settings.batch_slice_size)
        cruds.register_predictions(db, outcome.predictions, batch.predictor.version)
        if not batch.is_repredicting:  # which keeps the older prediction
            cruds.register_errors(db, outcome.errors)
        cruds.count_in_run(db, batch.run_id, len(outcome.predictions), len(outcome.errors))
    return outcome


def predict_next_chunk(batch: Batch, after_id: int) -> Outcome | None:
    """Like predict_chunk, but retries after a conflict with another transaction.

    Raises:
        Unavailable: the database does not answer, or every attempt ended in a conflict.
        Misconfigured: it refuses.
    """
    for _ in range(CHUNK_ATTEMPTS - 1):
        try:
            return predict_chunk(batch, after_id)
        except TransactionConflict:
            time.sleep(CHUNK_RETRY_DELAY_S)
    return predict_chunk(batch, after_id)


def predict_chunk_group(batch: Batch, after_id: int, progress: Progress, stopping: threading.Event) -> int:
    """Predict chunks until they are one of CHUNK_GROUPS parts of the run; the id after which to go on.

    A group is one span: with one for each chunk, a large run would have thousands.

    Raises what predict_next_chunk raises.
    """
    up_to_id = after_id + 1 + (batch.rows.last_id - batch.rows.first_id) // CHUNK_GROUPS
    chunks, predicted, errors = 0, progress.predicted, progress.errors
    with tracing.span("predict chunks", attributes={"batch.after_id": after_id}) as span:
        while after_id < up_to_id and not stopping.is_set():
            outcome = predict_next_chunk(batch, after_id)
            if outcome is None:
                after_id = batch.rows.last_id  # other jobs have claimed the rest
                break
            chunks, after_id = chunks + 1, outcome.last_id
            for item_id, reason in outcome.errors.items():
                log.warning("item cannot be predicted", item_id=item_id, reason=reason)
            progress.advance(len(outcome.predictions), len(outcome.errors), after_id)
        counts = {"batch.rows": progress.predicted - predicted, "batch.errors": progress.errors - errors}
        span.set({"batch.chunks": chunks, **counts})
    return after_id


def run_batch(
    database: Database,
    predictor: BatchPredictor,
    settings: JobSettings,
    stopping: threading.Event,
    repredict: str | None = None,
) -> None:
    """Predict all rows that are unpredicted now, or stop after the current chunk once `stopping` is set.

    Args:
        repredict: instead, predict again the rows that this older version of the model predicted.

    Raises:
        Unavailable, Misconfigured: the database does not answer, or refuses. Chunks before that are committed.
    """
    started = time.perf_counter()
    log.info("starting batch", model_version=predictor.version)
    row_filter = cruds.UNPREDICTED if repredict is None else cruds.predicted_by(repredict)
    with database.transaction(write=True) as db:
        run_id = cruds.start_run(db, predictor.version)
        rows = cruds.count_items(db, row_filter)
        cruds.delete_old_idempotency_keys(db)
    log.info(f"found {rows.count} {'unpredicted items' if repredict is None else f'items of model {repredict}'}")
    log.info(f"starting inference with {settings.batch_threads} threads")
    with ThreadPoolExecutor(settings.batch_threads) as executor, closing(Progress(rows)) as progress:
        batch = Batch(
            run_id=run_id,
            rows=rows,
            row_filter=row_filter,
            is_repredicting=repredict is not None,
            database=database,
            predictor=predictor,
            executor=executor,
            settings=settings,
        )
        after_id = rows.first_id - 1
        while after_id < rows.last_id and not stopping.is_set():
            after_id = predict_chunk_group(batch, after_id, progress, stopping)
    with database.transaction(write=True) as db:
        cruds.end_run(db, run_id)
    tracing.current().set(
        {
            "batch.run_id": run_id,
            "batch.rows": progress.predicted,
            "batch.errors": progress.errors,
            "model.version": predictor.version,
        }
    )
    duration_s = time.perf_counter() - started
    if stopping.is_set():
        log.info("batch stopped early; the next run continues from here")
    else:
        log.info("batch completed successfully")
        metrics.publish(settings, predicted=progress.predicted, errors=progress.errors, duration_s=duration_s)
    log.info(
        f"processed {progress.predicted} items in {duration_s:.1f} seconds",
        items=progress.predicted,
        errors=progress.errors,
        duration_ms=round(duration_s * 1000, 1),
        rows_per_s=round(progress.predicted / duration_s),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 after a batch or a signal; 1 after a failure, with the reason in the log's last line."""
    parser = argparse.ArgumentParser(prog="python -m src.task.job", description="Predict all unpredicted items.")
    parser.add_argument("--once", action="store_true", help="run one batch and exit (the default)")
    parser.add_argument("--no-wait", action="store_true", help="start immediately instead of after JOB_WAIT_SECONDS")
    parser.add_argument(
        "--repredict", metavar="VERSION", help="predict again the items that this older model version predicted"
    )
    arguments = parser.parse_args(argv)
    settings = load(JobSettings)
    logs.configure("job", settings)
    is_traced = tracing.configure("job")
    stopping = stop_event()
    try:
        predictor = BatchPredictor.load(read_card(settings))
        if arguments.repredict == predictor.version:
            raise StartupError(f"{predictor.version} is the version of the current model, not an older one")
        if not arguments.no_wait:
            log.info(f"waiting for batch to start ({settings.job_wait_seconds:g} seconds)")
            stopping.wait(settings.job_wait_seconds)
        if not stopping.is_set():
            with open_database(settings) as database, tracing.begin((), "batch run", INTERNAL) as span:
                if is_traced:
                    structlog.contextvars.bind_contextvars(trace_id=span.trace_id)
                run_batch(database, predictor, settings, stopping, arguments.repredict)
    except StartupError as exc:
        log.critical("batch failed", reason=str(exc))
        return 1
    except ServingError as exc:
        log.critical("batch failed", reason=with_cause(exc))
        return 1
    except Exception:
        log.exception("batch failed")
        return 1
    finally:
        tracing.shutdown()
    return 0


def stop_event() -> threading.Event:
    """Set by SIGTERM and SIGINT: the job finishes its chunk and exits. A second signal ends the process at once."""
    stopping = threading.Event()

    def stop(signal_number: int, _frame: object) -> None:
        signal.signal(signal_number, signal.SIG_DFL)
        stopping.set()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, stop)
    return stopping


if __name__ == "__main__":
    sys.exit(main())
