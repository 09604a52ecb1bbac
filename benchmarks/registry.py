"""What do a thousand, ten thousand, … a million registered tasks cost, and what is found among them?

The tasks are synthetic and imitate real ones: see `benchmarks/_registry_world.py`. With --data DIR the texts' vectors
that they are made of are real, and the inputs held out there are routed, too. 1,000 and 10,000 tasks by default; with
--full also 100,000 and 1,000,000. Matrix products use one thread, and times are CPU times unless they say wall. Bits
are counted in C where there is a compiler, else by numpy.

For each number of tasks: `import_tasks` from JSON lines with vectors into SQLite, and the index made by the first
router; routes of one text and of batches of 64 through `Router.decide`, without the encoder, whose own time is printed
beside; recall@10 of the scores against scoring every row: of new texts of the tasks, under a base model and under a
subtree (1 % of the tasks each, the one without regard to what tasks are about, the other one neighbours), and of real
texts; `Registry.add` until it has reached the disk, and until the next route of another process finds the new task;
writing the index again from the database; opening it in another process; memory of that process after routing; bytes.

Beside it the exact scan and faiss (HNSW) over the same rows.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapterhub.catalog import BitIndex, ExactIndex, FaissIndex, Ids, Queries, Rows, Scope, VectorIndex
from adapterhub.encoder import SentenceEncoder
from adapterhub.registry import Registry, import_tasks
from adapterhub.router import Background, Epoch, Router
from adapterhub.task import Task
from benchmarks._registry_plot import plot
from benchmarks._registry_serving import Serving, TableEncoder
from benchmarks._registry_world import ADAPTER, BLOCK, Pool, World, write
from benchmarks.report import Target, arguments, save

QUESTION = "What do a thousand to a million registered tasks cost, and what is found among them?"
QUERIES, BATCH, TIMED, ADDED = 256, 64, 40, 60
BEST = 10

Row = dict[str, object]


def main() -> None:
    args = arguments(QUESTION)
    if os.environ.get("OMP_NUM_THREADS") != "1":  # which numpy reads when it is imported
        command = [sys.executable, "-m", "benchmarks.registry", *sys.argv[1:]]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
        return
    sizes = (1_000, 10_000, 100_000, 1_000_000) if args.full else (1_000, 10_000)
    encoder, real = _encoder_ms(), None
    if args.data is not None:
        real = Pool.real(args.data, SentenceEncoder(), 90 if args.full else 10)
    world = World(real if real is not None else Pool.imitated(Background.shipped().sums))
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="registry-benchmark-") as folder:
            rows.append(_Case(world, size, Path(folder)).measured() | {"encoder, one text, ms": encoder})
    bars = ("route, one text, ms", "route in a batch of 64, ms")
    save("registry", QUESTION, rows, _targets(rows), bars, folder=args.results)
    plot(args.results / "registry-growth.png", QUESTION, rows)


@dataclass(frozen=True)
class _Case:
    """One registry of some number of tasks."""

    world: World
    size: int
    folder: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'registry.db'}"

    def measured(self) -> Row:
        vectors = self._queries()
        held_out = self.world.pool.held_out
        real = None if held_out is None else held_out[:QUERIES]
        known = dict(enumerate([*vectors, *([] if real is None else real)]))
        encoder = TableEncoder({f"query {number}": vector for number, vector in known.items()})
        cards, heard = write(self.world, self.size, self.folder, encoder.fingerprint)
        registry = Registry(self.url)
        imported = _took(lambda: import_tasks(registry, cards, vectors=heard))
        for path in (cards, heard):
            path.unlink()
        indexed = _took(lambda: Router(registry, encoder))
        router = Router(registry, encoder)
        row: Row = {
            "tasks": self.size,
            "import, s wall": imported[1],
            "import, s CPU": imported[0],
            "index, s wall": indexed[1],
            "index, s CPU": indexed[0],
            **self._routes(router),
            **self._found(registry, vectors, real),
            **self._living(registry),
        }
        index = registry.index_folder
        sizes = {path: path.stat().st_size for path in self.folder.rglob("*") if path.is_file()}
        inside = sum(size for path, size in sizes.items() if index in path.parents)
        row |= {"bytes a task": sum(sizes.values()) // self.size, "of these in the index": inside // self.size}
        if index is not None and index.exists():
            shutil.rmtree(index)
        row["rebuild, s wall"] = _took(lambda: Router(registry, encoder))[1]
        return row

    def _queries(self) -> np.ndarray:
        """New texts of tasks from all over the registry."""
        blocks = np.linspace(0, max(0, self.size // BLOCK - 1), 8).astype(int)
        found = []
        for turn, number in enumerate(blocks.tolist()):
            tasks = self.world.block(number)
            places = np.random.default_rng(turn).integers(min(BLOCK, self.size), size=QUERIES // 8)
            found.append(self.world.queries(tasks, places, turn))
        return np.concatenate(found)

    def _routes(self, router: Router) -> Row:
        texts = [f"query {number}" for number in range(QUERIES)]
        router.decide(texts[:BATCH])
        one = [_took(lambda text=text: router.decide([text]))[0] for text in texts[:TIMED]]
        many = [_took(lambda at=at: router.decide(texts[at : at + BATCH]))[0] for at in range(0, QUERIES, BATCH)]
        filtered = [_took(lambda text=text: router.decide([text], under="group-07"))[0] for text in texts[:TIMED]]
        by_base = [
            _took(lambda text=text: router.decide([text], base_model="example/base-07"))[0] for text in texts[:8]
        ]
        return {
            "route, one text, ms": 1000 * statistics.median(one),
            "route, p99, ms": 1000 * float(np.quantile(one, 0.99)),
            "route in a batch of 64, ms": 1000 * statistics.median(many) / BATCH,
            "route in a subtree, ms": 1000 * statistics.median(filtered),
            "route for a base model, ms": 1000 * statistics.median(by_base),
        }

    def _found(self, registry: Registry, vectors: np.ndarray, real: np.ndarray | None) -> Row:
        """Recall against scoring every row, and what the rivals take for the same queries."""
        epoch = Epoch.fit(Background.shipped().sums)
        keys, rows, index = self._rows(registry, epoch)
        queries = epoch.queries(vectors, int(rows.group.max()) + 1)
        exact = ExactIndex(rows.linear.shape[1])
        exact.add(keys, rows)
        expected = exact.search(queries, BEST)
        row: Row = {"recall@10": _recall(index.search(queries, BEST), expected)}
        for name, ids in self._subsets(registry).items():
            among = (index.search(queries, BEST, 8 * ids), exact.search(queries, BEST, 8 * ids))
            row[f"recall@10, {name}"] = _recall(*among)
        row |= {
            "recall@10, real texts": "-",
            "exact scan, ms": _one_by_one(exact, queries),
            "faiss, ms": "-",
            "faiss, build, s CPU": "-",
            "faiss, recall@10": "-",
            "faiss, recall@10, real texts": "-",
        }
        rivals: list[tuple[str, VectorIndex]] = [("", index)]
        if importlib.util.find_spec("faiss") is not None:
            row["faiss, build, s CPU"], graphs = _faiss(keys, rows)
            row["faiss, ms"] = _one_by_one(graphs, queries)
            row["faiss, recall@10"] = _recall(graphs.search(queries, BEST), expected)
            rivals.append(("faiss, ", graphs))
        if real is not None:
            asked = epoch.queries(real, int(rows.group.max()) + 1)
            best = exact.search(asked, BEST)
            row |= {f"{name}recall@10, real texts": _recall(rival.search(asked, BEST), best) for name, rival in rivals}
        return row

    def _rows(self, registry: Registry, epoch: Epoch) -> tuple[Ids, Rows, VectorIndex]:
        """All rows of the registry, and the index that the router uses."""
        blocks = registry.catalog.blocks(Background.shipped().fingerprint)
        parts = [(8 * block.ids, epoch.rows(block)) for block in blocks]
        keys = np.concatenate([keys for keys, _ in parts])
        rows = Rows(
            np.concatenate([rows.linear for _, rows in parts]),
            np.concatenate([rows.group for _, rows in parts]),
            np.concatenate([rows.offset for _, rows in parts]),
        )
        folders = list(registry.index_folder.glob("*/manifest.json")) if registry.index_folder else []
        if folders:
            return keys, rows, BitIndex.open(folders[0].parent)
        index = ExactIndex(rows.linear.shape[1])
        index.add(keys, rows)
        return keys, rows, index

    def _subsets(self, registry: Registry) -> dict[str, Ids]:
        return {
            "of 1 % by base model": registry.catalog.ids(Scope(base_model="example/base-07")),
            "of 1 % in a subtree": registry.catalog.ids(Scope(under="group-07")),
        }

    def _living(self, registry: Registry) -> Row:
        """Tasks that are added while another process routes."""
        acknowledged, seen = [], []
        with Serving(self.url) as serving:
            serving.ask([f"text {number}" for number in range(BATCH)])
            for number in range(ADDED):
                text = f"a text of new task {number}"
                task = Task(f"new/task-{number}", "A new task.", (text,), adapter=f"{ADAPTER}/new", sha256="0" * 64)
                acknowledged.append(1000 * _took(lambda task=task: registry.add(task))[1])
                begin = time.perf_counter()
                [found] = serving.ask([text])["tasks"]
                seen.append(1000 * (time.perf_counter() - begin))
                if found != task.name:
                    raise RuntimeError(f"{task.name} was added, and the next route of another process found {found}")
            for turn in range(20):
                answer = serving.ask([f"text {turn} {number}" for number in range(BATCH)])
        return {
            "add, p50, ms wall": statistics.median(acknowledged),
            "add, p99, ms wall": float(np.quantile(acknowledged, 0.99)),
            "add to another process's next route, ms wall": statistics.median(seen),
            "reopen, ms wall": serving.started["ms"],
            "memory of a serving process, MB": answer["resident"],
        }


def _encoder_ms() -> float:
    """CPU milliseconds for one sentence of 20 words."""
    encoder = SentenceEncoder(cache_size=0)
    words = "please translate the following short sentence into french and keep its tone as it is in the original text"
    times = [_took(lambda turn=turn: encoder.encode([f"{words} {turn}"]))[0] for turn in range(12)]
    return 1000 * statistics.median(times[2:])


def _one_by_one(index: VectorIndex, queries: Queries) -> float:
    """CPU milliseconds of a query."""
    alone = [Queries(queries.linear[at : at + 1], queries.groups[at : at + 1]) for at in range(TIMED)]
    return 1000 * statistics.median([_took(lambda one=one: index.search(one, BEST))[0] for one in alone])


def _recall(found: Sequence[tuple[Ids, np.ndarray]], expected: Sequence[tuple[Ids, np.ndarray]]) -> float:
    hits = [np.isin(others, some).mean() for (some, _), (others, _) in zip(found, expected, strict=True) if len(others)]
    return float(np.mean(hits))


def _took(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU and of wall time."""
    begin = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - begin[0], time.perf_counter() - begin[1]


def _faiss(keys: Ids, rows: Rows) -> tuple[float, FaissIndex]:
    """Seconds of CPU, on all cores, and the index; its searches use one."""
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    begin = time.process_time()
    index = FaissIndex(keys, rows)
    faiss.omp_set_num_threads(1)
    return time.process_time() - begin, index


def _targets(rows: list[Row]) -> list[Target]:
    last = rows[-1]
    size = f"{last['tasks']:,} tasks: "
    numbers = {key: value for key, value in last.items() if isinstance(value, float | int)}
    found = [
        Target(f"{size}import with index, s wall", numbers["import, s wall"] + numbers["index, s wall"], 600),
        Target(f"{size}one route beside the encoder, ms", numbers["route, one text, ms"], 10),
        Target(f"{size}a route in a batch of 64, ms", numbers["route in a batch of 64, ms"], 5),
        Target(f"{size}durable add, p50, ms", numbers["add, p50, ms wall"], 10),
        Target(f"{size}rebuild, s wall", numbers["rebuild, s wall"], 15),
        Target(f"{size}reopen, ms wall", numbers["reopen, ms wall"], 500),
        Target(f"{size}memory of a serving process, MB", numbers["memory of a serving process, MB"], 500),
    ]
    for name, least in (("recall@10", 0.98), ("recall@10, of 1 % by base model", 0.99),
                        ("recall@10, of 1 % in a subtree", 0.99), ("recall@10, real texts", 0.98)):  # fmt: skip
        if name in numbers:
            found.append(Target(f"{size}{name}", numbers[name], least, "higher"))
    return found


if __name__ == "__main__":
    main()
