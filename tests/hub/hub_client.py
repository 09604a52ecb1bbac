"""One process that pushes and pulls on command: a line of JSON in, a line of JSON out.

The Hub's client reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when it is imported: each setting is its own process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Client:
    """Calls functions of `adapterhub.hub` in another process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """The result, or `ErrorName: message` for one of our own errors."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([function, args, kwargs], default=str) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def client(endpoint: str, home: Path, *, offline: bool = False, token: str = "hf_test") -> Iterator[Client]:
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "HUGGING"))}
    if token:
        settings["HF_TOKEN"] = token
    process = subprocess.Popen(
        [sys.executable, "-W", "error", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**inherited, **settings},
    )
    try:
        yield Client(process)
    finally:
        process.communicate(timeout=60)
    assert process.returncode == 0


def main() -> None:
    from adapterhub import hub
    from adapterhub.errors import AdapterHubError

    for line in sys.stdin:
        function, args, kwargs = json.loads(line)
        try:
            result = getattr(hub, function)(*args, **kwargs)
        except AdapterHubError as error:
            result = f"{type(error).__name__}: {error}"
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
