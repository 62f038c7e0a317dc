"""One search from two machines, over PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fogline
from fogline._tune.study import hidden, open_storage
from programs.searches import RECIPE, SPACE, line_task


def _program(name: str) -> str | None:
    """A program of PostgreSQL, which Debian keeps outside the path."""
    places = [str(path.parent) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def _server_user() -> str | None:
    """Whom the server runs as: it refuses to be root."""
    if os.getuid() != 0:
        return None
    return "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty database on a server of its own."""
    initdb, server = _program("initdb"), _program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed: pip install 'fogline[tune]'")
    user = _server_user()
    folder = Path(f"/tmp/fogline-pg-{os.getpid()}")  # the path of its socket must be short, and its user must reach it
    folder.mkdir(mode=0o700)
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = str(folder / "data")
    process = None
    try:
        made = subprocess.run(
            [initdb, "-D", data, "-U", "fogline", "-A", "trust", "--no-sync"],
            user=user, cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            pytest.skip(f"no PostgreSQL server can be started here: {made.stderr.strip().splitlines()[-1:]}")
        process = subprocess.Popen(
            [server, "-D", data, "-p", str(port), "-k", str(folder), "-c", "fsync=off"],
            user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _wait_for(port)
        yield f"postgresql://fogline@127.0.0.1:{port}/postgres"
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # it waits for nobody then
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(port: int) -> None:
    import psycopg

    for _ in range(300):
        try:
            psycopg.connect(f"postgresql://fogline@127.0.0.1:{port}/postgres").close()
        except psycopg.OperationalError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError("the PostgreSQL server did not answer within a minute")


def test_machines_share_a_search_through_a_database(database: str, tmp_path: Path) -> None:
    """Two folders stand for two machines: each call sees and counts what the other did."""
    options = {"recipe": RECIPE, "storage": database, "name": "shared", "together": False, "progress": False}
    first = fogline.tune(line_task(), SPACE, trials=2, runs=tmp_path / "one", **options)
    both = fogline.tune(line_task(), SPACE, trials=4, runs=tmp_path / "two", **options)
    assert len(both.trials) == 4
    assert [row["params"] for row in both.trials[:2]] == [row["params"] for row in first.trials[:2]]
    runs = [sorted(path.name for path in (tmp_path / side / "shared").glob("trial-*")) for side in ("one", "two")]
    assert runs == [["trial-0000", "trial-0001"], ["trial-0002", "trial-0003"]]
    assert not (tmp_path / "two" / "shared" / "study.journal").exists()
    journal = fogline.tune(line_task(), SPACE, trials=4, runs=tmp_path, recipe=RECIPE, together=False, progress=False)
    assert [row["params"] for row in journal.trials] == [row["params"] for row in both.trials]
    opened = fogline.Tuned.open(tmp_path / "one" / "shared", database)
    assert opened.value == both.value


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed: pip install 'fogline[tune]'")
    with pytest.raises(ValueError, match="a database that answers") as error:
        open_storage(tmp_path, "postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(error.value)


def test_a_password_is_hidden() -> None:
    assert hidden("postgresql://me@host/db") == "postgresql://me@host/db"
    assert hidden("postgresql://me:pw@host/db") == "postgresql://me:***@host/db"
