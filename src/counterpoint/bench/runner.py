"""Runs: one in this process, or many over several processes."""

import contextlib
import dataclasses
import json
import multiprocessing
import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from counterpoint._files import write_atomically
from counterpoint.bench.build import Built, build, check_run, environment
from counterpoint.bench.run_config import RunConfig
from counterpoint.diagnostics import ConflictMonitor
from counterpoint.errors import CounterpointError, FileError, RunError
from counterpoint.training import RunFolder, fit
from counterpoint.training.run_folder import ERROR, RESULT, read_finished
from counterpoint.training.visit import Parts


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Attributes:
        method: Name of the method, or ``"single_task"``.
        task: Of a method with several networks, the tasks of this one, joined by plus signs; else ``None``.
        config: What to run.
        path: Its folder.
        serves: Tasks whose numbers the method takes from this run; ``None`` for all.
    """

    method: str
    task: str | None
    config: RunConfig
    path: Path
    serves: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """Name for progress and messages."""
        return f"{self.method}{'' if self.task is None else ' ' + self.task} seed {self.config.seed}"


@dataclasses.dataclass(frozen=True)
class Event:
    """News of a job: ``"start"``, ``"epoch"``, ``"done"`` or ``"failed"``."""

    kind: str
    index: int
    epoch: int = 0
    message: str = ""


Listener = Callable[[Event], None]

_PATIENCE = 0.1  # seconds without news after which the end is looked for


def run_one(
    config: RunConfig,
    path: Path,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    *,
    watch: Callable[[Built], ConflictMonitor] | None = None,
    before_batch: Callable[[Parts, Any], None] | None = None,
) -> dict[str, Any]:
    """Do one run, or go on with it, or return its result if it is done.

    A run that fails leaves ``error.json`` in its folder. Nothing is written if the configuration is wrong.

    Args:
        config: What to run.
        path: Folder of the run.
        on_epoch: Called with the record of each epoch.
        watch: Called with what was built; the monitor that it returns measures the run.
        before_batch: As in :func:`counterpoint.training.fit`.

    Raises:
        RunError: If something goes wrong that no error of this package stands for.
    """
    check_run(config)
    if (path / RESULT).exists():
        with RunFolder(path, config.to_dict()) as folder:
            finished = read_finished(path)
            folder.remove(ERROR)
            return finished.result
    built = build(config)
    with RunFolder(path, config.to_dict(), environment()) as folder:
        folder.remove(ERROR)
        try:
            return fit(
                built.model,
                built.data,
                built.balancer,
                built.optimizer,
                folder,
                config.training.fit_options(config.seed, step_schedule=config.scheduler.every_step),
                tasks=built.tasks,
                scheduler=built.scheduler,
                schedule=built.schedule,
                fabric=built.fabric,
                on_epoch=on_epoch,
                watch=None if watch is None else watch(built),
                before_batch=before_batch,
            )
        except Exception as error:
            with contextlib.suppress(FileError):  # the disk may be full, and what happened is the other error
                folder.write_json(ERROR, _describe(error))
            if isinstance(error, CounterpointError):
                raise
            raise RunError(f"{_message(error)}; the traceback is in {path / ERROR}") from error


def run_many(jobs: Sequence[Job], *, workers: int, listener: Listener) -> None:
    """Do all jobs; one that fails is recorded in its folder and the rest goes on.

    Args:
        jobs: What to run.
        workers: Number of processes; 1 runs in this process.
        listener: Called in this process with the news of the jobs.
    """
    if workers == 1:
        for index, job in enumerate(jobs):
            _run_job(index, job, listener)
        return
    remaining = dict(enumerate(jobs))
    while remaining:
        for index in _run_pool(remaining, workers, listener):
            # a process that dies takes the others of its pool with it: each job goes on alone, to find the guilty one
            if _run_pool({index: jobs[index]}, 1, listener):
                message = "the worker process died twice in this run (killed, or out of memory?)"
                record = json.dumps({"type": "BrokenProcessPool", "error": message}) + "\n"
                write_atomically(jobs[index].path / ERROR, record.encode())
                listener(Event("failed", index, message=message))


def _run_pool(remaining: dict[int, Job], workers: int, listener: Listener) -> list[int]:
    """Work on jobs until all are done or a process dies; remove all that began, and return those that died."""
    context = multiprocessing.get_context("spawn")
    news = context.Queue()
    running: set[int] = set()

    def note(event: Event) -> None:
        running.add(event.index) if event.kind == "start" else None
        if event.kind in ("done", "failed"):
            running.discard(event.index)
            remaining.pop(event.index, None)
        listener(event)

    with _forwarding(news, note):
        pool = ProcessPoolExecutor(min(workers, len(remaining)), context, initializer=_init_worker, initargs=(news,))
        try:
            futures: dict[Future, int] = {
                pool.submit(_run_in_worker, index, job): index for index, job in remaining.items()
            }
            pending = set(futures)
            while pending:
                ended, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
        except BrokenProcessPool:
            pass  # the jobs that were running are reported below, the others are submitted again
        except BaseException:
            for process in list(getattr(pool, "_processes", {}).values()):
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    died = sorted(running)
    if not died and remaining:
        raise CounterpointError("worker processes die before they start; try --workers 1 to see why")
    for index in died:
        remaining.pop(index, None)
    return died


@contextlib.contextmanager
def _forwarding(news: Any, note: Listener) -> Iterator[None]:
    """Hand news from the workers to a listener, in a thread of its own.

    This process only reads: a worker that is killed while it writes takes the lock of all writers with it.
    """
    ended = threading.Event()

    def forward() -> None:
        while True:
            last = ended.is_set()  # asked before looking, so that nothing sent before the end is missed
            try:
                note(news.get(timeout=_PATIENCE))
            except queue.Empty:
                if last:
                    return

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=30)  # half a message of a killed worker may be all that is left, and never becomes whole


_news: Any = None  # the queue of this worker process; set once when the process starts


def _init_worker(news: Any) -> None:
    global _news  # a worker process has no other place that outlives a job
    _news = news


def _run_in_worker(index: int, job: Job) -> None:
    _run_job(index, job, _news.put)


def _run_job(index: int, job: Job, listener: Listener) -> None:
    """Do one job and tell how it went; only an interrupt gets out."""
    listener(Event("start", index))
    try:
        run_one(job.config, job.path, lambda record: listener(Event("epoch", index, epoch=record["epoch"])))
    except Exception as error:  # whatever goes wrong in one run must not stop the others
        if not (job.path / ERROR).exists():
            with (
                contextlib.suppress(FileError),
                RunFolder(job.path, job.config.to_dict(), environment()) as folder,
            ):
                folder.write_json(ERROR, _describe(error))
        listener(Event("failed", index, message=" ".join(_message(error).split())))
    else:
        listener(Event("done", index))


def _message(error: Exception) -> str:
    """Return what went wrong; the messages of others need the type, as that of a ``KeyError`` is only the key."""
    return str(error) if isinstance(error, CounterpointError) else f"{type(error).__name__}: {error}"


def _describe(error: Exception) -> dict[str, str]:
    return {"type": type(error).__name__, "error": _message(error), "traceback": traceback.format_exc()}
