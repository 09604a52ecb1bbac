"""Run every benchmark in its short form into `build/bench`, then print the targets that do not hold."""

import json
import runpy
import sys
from pathlib import Path

SUPPORT = {"report"}
FOLDER = Path("build/bench")  # the results in the repository are those of the long forms


def main() -> None:
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in SUPPORT and not path.stem.startswith("_"):
            print(f"== {path.stem}", file=sys.stderr)
            sys.argv = [path.stem, "--results", str(FOLDER)]
            runpy.run_module(f"benchmarks.{path.stem}", run_name="__main__")
    missed = 0
    for path in sorted(FOLDER.glob("*.json")):
        for target in json.loads(path.read_text(encoding="utf-8"))["targets"]:
            if not target["holds"]:
                missed += 1
                figures = "{name} {value:.3g}, target {better} than {target}".format(**target)
                print(f"{path.stem}: {figures}")
    print(f"{missed} targets do not hold")


if __name__ == "__main__":
    main()
