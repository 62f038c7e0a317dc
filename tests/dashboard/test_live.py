"""What is told of a folder that changes: each change once, and nothing where nothing happened."""

from __future__ import annotations

import http.client
import os
import shutil
import time
from pathlib import Path

from dashboard.conftest import Served
from fogline.dashboard.runs import ALIVE, Folder, Watch
from fogline.record.store import Store
from run_folders import make_run


def test_each_change_is_told_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name)
    watch = Watch(Folder(tmp_path))
    assert watch.changes() == ([], [])
    store = Store(tmp_path / "b")
    store.event(7, "note", "a word")
    store.flush()
    assert watch.changes() == (["b"], [])
    assert watch.changes() == ([], [])
    store.close()
    make_run(tmp_path / "c")
    shutil.rmtree(tmp_path / "a")
    changed, gone = watch.changes()
    assert (set(changed) - {"b"}, gone) == ({"c"}, ["a"])
    assert watch.changes() == ([], [])


def test_reading_a_run_is_no_change(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    folder = Folder(tmp_path)
    watch = Watch(folder)
    assert len(folder.view("a").steps) == 200
    assert len(folder.view("a").events) == 0
    assert watch.changes() == ([], [])


def test_what_was_written_while_the_page_came_is_told_at_the_first_question(tmp_path: Path) -> None:
    for name in ("old", "new"):
        make_run(tmp_path / name)
    for file in (tmp_path / "old").iterdir():
        os.utime(file, (time.time() - 100,) * 2)
    assert Watch(Folder(tmp_path), since=time.time() - 50).changes() == (["new"], [])
    assert Watch(Folder(tmp_path), only="old", since=time.time() - 50).changes() == ([], [])


def test_falling_silent_is_a_change(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", verdict=None)
    files = list(folder.iterdir())
    almost = time.time() - ALIVE + 2
    for file in files:
        os.utime(file, (almost, almost))
    watch = Watch(Folder(tmp_path))
    end = time.monotonic() + 30
    told = False
    while not told and time.monotonic() < end:
        told = watch.changes() == (["a"], [])
        time.sleep(0.1)
    assert told
    assert Folder(tmp_path).summary("a").state == "silent"


def test_the_stream_is_one_of_events(dashboard: Served) -> None:
    make_run(dashboard.runs / "streamed")
    connection = http.client.HTTPConnection("127.0.0.1", dashboard.port, timeout=30)
    connection.request("GET", f"/runs/streamed/live?since={time.time() - 60:.3f}", headers={"Cookie": dashboard.cookie})
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [answer.readline().decode().strip() for _ in range(4)]
    assert lines == ["retry: 2000", "", "event: changed", 'data: {"changed": ["streamed"], "gone": []}']
    connection.close()


def test_a_moment_that_is_none_is_no_error(dashboard: Served) -> None:
    for since in ("", "x", "1e400", "nan", "-1", "9" * 50):
        connection = http.client.HTTPConnection("127.0.0.1", dashboard.port, timeout=30)
        connection.request("GET", f"/live?since={since}", headers={"Cookie": dashboard.cookie})
        answer = connection.getresponse()
        assert answer.readline() == b"retry: 2000\n"
        connection.close()
