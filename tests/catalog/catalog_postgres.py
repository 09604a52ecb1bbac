"""A PostgreSQL server for the tests: the one of ADAPTERHUB_TEST_POSTGRES, or a private one of the installed binaries.

The private one listens on 127.0.0.1 at a free port, keeps its data in a temporary folder, and ends with this process.
"""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

ENVIRONMENT = "ADAPTERHUB_TEST_POSTGRES"
USER, PASSWORD = "tester", "p@ss/wörd"
_OLDEST = 15
_WAIT = 60.0


class PrivateServer:
    """A server of our own; `start` and `stop` may be repeated, the data stay until `remove`."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._account = _account()
        self._folder = Path(tempfile.mkdtemp(prefix="adapterhub-postgres-"))
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        if self._account is not None:
            os.chown(self._folder, self._account.pw_uid, self._account.pw_gid)

    def initialise(self) -> None:
        secret = self._folder / "password"
        secret.write_text(PASSWORD, encoding="utf-8")
        # Where ICU is there, texts sort as in a dictionary, without regard to `-` and `/`; columns may say otherwise.
        for locale in (["--locale-provider=icu", "--icu-locale=en-US-u-ka-shifted"], []):
            done = self._run(
                "initdb", "-D", str(self._data), "-U", USER, f"--pwfile={secret}", "-A", "scram-sha-256",
                "-E", "UTF8", "--locale=C", "--no-sync", *locale,
            )  # fmt: skip
            if done.returncode == 0:
                return
            shutil.rmtree(self._data, ignore_errors=True)
        raise RuntimeError(f"initdb failed: {done.stderr}")

    @contextmanager
    def standby(self) -> Iterator[PrivateServer]:
        """A second server that follows this one and answers questions."""
        follower = PrivateServer(self._binaries)
        try:
            done = follower._run(
                "pg_basebackup", "-D", str(follower._data), "-d", self.url, "-R", "-X", "stream", "-c", "fast", "-N"
            )
            if done.returncode != 0:
                raise RuntimeError(f"pg_basebackup failed: {done.stderr}")
            follower.start()
            yield follower
        finally:
            follower.remove()

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:p%40ss%2Fw%C3%B6rd@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "on",
            "max_wal_size": "2GB",
        }
        command = [str(self._binaries / "postgres"), "-D", str(self._data)]
        command += [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._as_account(command), stdout=log, stderr=log, cwd="/")
        deadline = time.monotonic() + _WAIT
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    text = (self._folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"the server did not start: {error}\n{text}") from error
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends it orderly, SIGQUIT at once and without a checkpoint, as a crash does."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        try:
            process.wait(_WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = self._as_account([str(self._binaries / program), *arguments])
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")

    def _as_account(self, command: list[str]) -> list[str]:
        prefix: list[str] = []
        if setpriv := shutil.which("setpriv"):
            prefix = [setpriv, "--pdeathsig", "QUIT"]  # it must not outlive a test run that is killed
            if self._account is not None:
                prefix += [f"--reuid={self._account.pw_uid}", f"--regid={self._account.pw_gid}", "--clear-groups"]
        elif self._account is not None:
            prefix = ["runuser", "-u", self._account.pw_name, "--"]
        return [*prefix, *command]


def postgres_url() -> str | None:
    """URL of a server for this test run, without a query, or None; `why_not` then says why."""
    return os.environ.get(ENVIRONMENT) or (server.url if (server := private_server()) else None)


def why_not() -> str:
    return f"no PostgreSQL {_OLDEST} or newer is installed, and {ENVIRONMENT} is not set: scripts/install_postgres.sh"


@functools.cache
def private_server() -> PrivateServer | None:
    """The server of our own, started at the first call and stopped at exit; None where none is installed."""
    binaries = _binaries()
    if binaries is None:
        return None
    server = PrivateServer(binaries)
    atexit.register(server.remove)
    server.initialise()
    server.start()
    return server


@contextmanager
def schema(url: str) -> Iterator[str]:
    """URL of an empty schema, which is dropped in the end."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    try:
        yield f"{url}?schema={name}"
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


def _binaries() -> Path | None:
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if beside := shutil.which("postgres"):
        found.append(Path(beside).resolve().parent)
    versions = {folder: _version(folder) for folder in found if (folder / "initdb").exists()}
    return max((folder for folder, version in versions.items() if version >= _OLDEST), key=versions.get, default=None)


def _version(folder: Path) -> int:
    text = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return int("".join(letter if letter.isdigit() else " " for letter in text).split()[0])


def _account() -> pwd.struct_passwd | None:
    """Whom the server runs as where we are root, which it refuses."""
    if os.getuid() != 0:
        return None
    names = [entry.pw_name for entry in pwd.getpwall()]
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
