"""Do the bundled tasks route well, and does every adapter beat the bare base?"""

from adapterhub.evaluation import evaluate, read_evaluation_rows
from adapterhub.model import RoutedModel
from adapterhub.registry import Registry, bundled_registry
from benchmarks.report import Target, arguments, save

QUESTION = "Do the bundled tasks route well, and does every adapter beat the bare base?"


def main() -> None:
    args = arguments(QUESTION)
    registry = Registry(bundled_registry())
    rows = {
        task.name: read_evaluation_rows(path, task)
        for task in registry.under("")
        if task.adapter and (path := registry.root / task.name / "eval.jsonl").is_file()
    }
    reports = evaluate(RoutedModel.from_pretrained(registry=registry), rows)
    total = sum(r.rows for r in reports)
    routing = sum(r.routing * r.rows for r in reports) / total
    table: list[dict[str, object]] = [
        {"task": r.task, "rows": r.rows, "metric": r.metric, "base": r.base, "own": r.own, "routed": r.routed,
         "routing": r.routing, "negative transfer": r.negative_transfer}
        for r in reports
    ]  # fmt: skip
    margins = [Target(f"margin over the base: {r.task}", r.margin, 0.05, "higher") for r in reports]
    save(
        "bundled",
        QUESTION,
        table,
        [Target("routing accuracy", routing, 0.95, "higher"), *margins],
        ("base", "own", "routed"),
        folder=args.results,
    )


if __name__ == "__main__":
    main()
