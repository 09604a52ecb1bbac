"""The runs of the training benchmarks: processes of one thread, as many at once as there are cores, and kept."""

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from adapterhub.evaluation import Outcome, Record, Trace, read_records, write_records
from benchmarks._training_runs import Family, Job, named, run

__all__ = ["Done", "done", "of", "together"]

Done = Mapping[Job, list[Record]]
Kind = TypeVar("Kind", Outcome, Trace)


def done(jobs: Sequence[Job], args: argparse.Namespace) -> Done:
    """What each job left; those that the cache has are not run.

    Args:
        jobs: In the order in which they are begun.
        args: Of the command line, with the folder of task data, and perhaps one that keeps what was done.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return dict(zip(jobs, _records(jobs, args.data, args.cache or Path(scratch)), strict=True))


def of(found: Done, kind: type[Kind]) -> list[Kind]:
    """All records of a kind."""
    return [one for records in found.values() for one in records if isinstance(one, kind)]


def together(found: Done, family: Family, steps: int) -> Done:
    """The runs that train a family's tasks in so many steps."""
    wanted = ("together", family, steps)
    return {job: records for job, records in found.items() if (job.kind, job.family, job.steps) == wanted}


def _records(jobs: Sequence[Job], data: Path, cache: Path) -> list[list[Record]]:
    paths = [cache / f"{named(job)}.jsonl" for job in jobs]
    missing = [(job, path) for job, path in zip(jobs, paths, strict=True) if not path.is_file()]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks._training_runs"])
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, max_tasks_per_child=1) as pool:
        running = [pool.submit(_run, job, data, path) for job, path in missing]
        for count, one in enumerate(as_completed(running), start=1):
            print(f"{count} of {len(running)}: {one.result()}", file=sys.stderr)
    return [read_records([path]) for path in paths]


def _run(job: Job, data: Path, path: Path) -> str:
    write_records(path, run(job, data))
    return path.stem
