"""Write `eval.jsonl` beside the cards of the tasks whose rows come from our own generators.

    python scripts/evaluation_rows.py [--registry registry]

Forty test rows a task, drawn at random with a fixed seed; the rows of the other tasks were written by hand.
"""

import argparse
import json
import random
from pathlib import Path

from task_data import BUILDERS

from adapterhub.registry import Registry

GENERATED = (
    "knowledge/question-answering",
    "language/named-entities",
    "language/translation-en-de",
    "reasoning/logic",
    "reasoning/math",
    "reasoning/spatial",
)
ROWS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    registry = Registry(parser.parse_args().registry)
    for name in GENERATED:
        # These builders need no data folder.
        test = [row for row in BUILDERS[name](Path())["test"] if row["input"] not in registry[name].examples]
        rows = random.Random(0).sample(test, ROWS)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (registry.root / name / "eval.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
