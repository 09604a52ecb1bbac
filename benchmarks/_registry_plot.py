"""How the figures grow with the number of tasks."""

from pathlib import Path


def plot(path: Path, title: str, rows: list[dict[str, object]]) -> None:
    """Milliseconds and memory against the number of tasks, both on logarithmic axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    sizes = [row["tasks"] for row in rows]
    for axes, columns in (
        (left, ("route, one text, ms", "route in a batch of 64, ms", "exact scan, ms", "faiss, ms",
                "encoder, one text, ms")),
        (right, ("import, s wall", "index, s wall", "rebuild, s wall", "faiss, build, s CPU")),
    ):  # fmt: skip
        for column in columns:
            points = [(size, row[column]) for size, row in zip(sizes, rows, strict=True)]
            numbers = [(size, value) for size, value in points if isinstance(value, float | int)]
            axes.plot(*zip(*numbers, strict=True), marker="o", label=column) if numbers else None
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("tasks")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
