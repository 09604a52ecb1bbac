"""One process in which commands run one after another: a line of JSON in, a line of JSON out.

The Hub's client reads HF_ENDPOINT and HF_HUB_OFFLINE when it is imported, so commands that talk to a server of the test
need a process of their own, and one is enough for all of them.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path


class Client:
    """Runs commands in another process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self.process.stdin.flush()
        code, out, err = json.loads(self.process.stdout.readline())
        return code, out, err


@contextmanager
def client(endpoint: str, home: Path) -> Iterator[Client]:
    """A process whose Hub is at this address."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "HUGGING"))}
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**inherited, **settings, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"},
    )
    try:
        yield Client(process)
    finally:
        process.communicate(timeout=120)
    assert process.returncode == 0


def serve() -> None:
    """Answer lines until there are none."""
    from adapterhub.cli import main

    answers = sys.stdout
    for line in sys.stdin:
        sys.argv = ["adapterhub", *json.loads(line)]
        out, err, code = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
