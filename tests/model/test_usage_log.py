"""The usage log: what a line holds, torn lines, several writers, a disk that is full."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

import pytest

from adapterhub.errors import InputError
from adapterhub.model import Prediction, Usage, UsageLog, read_usage

KNOWN = Prediction("language/grammar", "She go.", ("She goes.",), (0.75,), (("language/grammar", 1.0),))
FOREIGN = Prediction(None, "Zzz?", ("…",), (0.125,), ())


def test_a_line_holds_what_is_documented_and_no_text(tmp_path: Path):
    log = UsageLog(tmp_path / "logs" / "usage.jsonl")
    log.record([KNOWN, FOREIGN], 0.5, tasks=["language/grammar", None], scores=[None, -1.5])
    content = log.path.read_text(encoding="utf-8")
    assert "She go" not in content
    assert "Zzz" not in content
    first, second = map(json.loads, content.splitlines())
    assert first.keys() == {"time", "task", "adapters", "told", "seconds", "length", "confidence"}
    known, foreign = read_usage(log.path)[0]
    assert known == Usage(first["time"], "language/grammar", ("language/grammar",), True, 0.25, 7, None, 0.75)
    assert foreign == Usage(second["time"], None, (), False, 0.25, 4, -1.5, 0.125)


def test_only_texts_that_no_task_fits_are_kept_and_only_when_asked(tmp_path: Path):
    log = UsageLog(tmp_path / "usage.jsonl", keep_abstained=True, sync="batch")
    log.record([KNOWN, FOREIGN, FOREIGN], 0.5, tasks=[None, None, "base"])
    assert [one.text for one in read_usage(log.path)[0]] == [None, "Zzz?", None]


def test_nothing_is_no_line(tmp_path: Path):
    log = UsageLog(tmp_path / "usage.jsonl")
    log.record([], 0.5)
    assert not log.path.exists()


def test_torn_and_foreign_lines_are_counted_and_left_out(tmp_path: Path):
    path = tmp_path / "usage.jsonl"
    log = UsageLog(path)
    log.record([KNOWN], 0.5)
    good = path.read_text(encoding="utf-8").strip()
    wrong = [good[:30], "[]", '{"time": 1}', good.replace("0.5", '"x"'), good.replace("7", "-7"), "\ud800".encode(
        "utf-8", "surrogatepass").decode("latin-1")]  # fmt: skip
    path.write_text("\n".join([good, *wrong, "", good]) + "\n", encoding="utf-8")
    found, torn = read_usage(path)
    assert (len(found), torn) == (2, len(wrong))


def test_threads_and_logs_on_one_file_cut_no_line(tmp_path: Path):
    logs = [UsageLog(tmp_path / "usage.jsonl") for _ in range(2)]
    threads = [
        threading.Thread(target=lambda log=log: [log.record([KNOWN, FOREIGN], 0.1) for _ in range(50)])
        for log in logs for _ in range(3)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, torn = read_usage(tmp_path / "usage.jsonl")
    assert (len(found), torn) == (600, 0)


def test_a_full_disk_costs_lines_and_no_answer(tmp_path: Path, monkeypatch, caplog):
    log = UsageLog(tmp_path / "usage.jsonl")
    log.record([KNOWN], 0.1)
    write = os.write

    def half(descriptor: int, content: bytes) -> int:
        return write(descriptor, content[: len(content) // 2])

    def full(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with caplog.at_level(logging.WARNING):
        for broken in (half, full):
            monkeypatch.setattr(os, "write", broken)
            log.record([KNOWN], 0.1)
    monkeypatch.setattr(os, "write", write)
    log.record([FOREIGN], 0.1)
    assert log.lost == 2
    assert len(caplog.records) == 1
    found, torn = read_usage(log.path)
    assert ([one.task for one in found], torn) == (["language/grammar", None], 1)


def test_bad_arguments(tmp_path: Path):
    with pytest.raises(InputError, match="never or batch"):
        UsageLog(tmp_path / "usage.jsonl", sync="always")
    with pytest.raises(InputError, match="no file"):
        read_usage(tmp_path / "none.jsonl")
