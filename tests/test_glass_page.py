"""The page of the glass box: who may see it and press its buttons, and what a browser shows."""

import http.client
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from glass.control import Control, Refused
from glass.history import History
from shared import embedded, processes
from shared.lessons import find, lessons
from shared.processes import WorkerProcess, wait_until, within, worker_processes
from shared.testing import environment
from tests.test_glass import execute, tables

ROOT = Path(__file__).resolve().parents[1]
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"

pytestmark = pytest.mark.skipif(
    "DATABASE_URL" in os.environ, reason="that server may not write what the glass box reads"
)


class Page:
    """`make watch`, on a port of its own."""

    def __init__(self, lesson, *options):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glass", str(lesson), "--port", "0", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "LESSON_PARENT": str(os.getpid())},
        )
        self.url = self.process.stdout.readline().strip()
        self.address = urlsplit(self.url).netloc
        self.token = urlsplit(self.url).query.removeprefix("token=")
        self.cookie = f"glass{urlsplit(self.url).port}={self.token}"

    def close(self):
        self.process.terminate()
        self.process.wait(within(20))

    def ask(self, path="/view?at=0", *, method="GET", body=None, **headers):
        """A header that is None is not sent."""
        connection = http.client.HTTPConnection(self.address, timeout=within(30))
        sent = {"Host": self.address, "Cookie": self.cookie}
        if method == "POST":
            sent |= {"Origin": f"http://{self.address}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        data = (body or "").encode()
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        answer = connection.getresponse()
        text = answer.read(20_000).decode() if "live" not in path else ""
        return answer.status, text, answer.headers

    def do(self, **order):
        status, text, _ = self.ask("/do", method="POST", body=json.dumps(order))
        return status, text


@contextmanager
def page(lesson, *options):
    opened = Page(lesson, *options)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def three(postgres, tmp_path, monkeypatch):  # noqa: ARG001  held for the whole session
    monkeypatch.setenv("LESSON_OUTSIDE", str(tmp_path / "outside.log"))
    with tables("03") as found:
        yield found


@pytest.fixture
def buttons(three):
    with page(three.path, "--control") as opened:
        yield opened


@pytest.fixture(scope="module")
def door(postgres):  # noqa: ARG001  held for the whole session
    """A page for those whom it refuses: there are no tables behind it."""
    with environment(LESSON_SCHEMA=f"test_{os.getpid()}_none"), page(find("03"), "--control") as it:
        yield it


def test_who_is_refused(door):
    host, cookie = door.address, door.cookie
    own = {"method": "POST", "body": '{"do": "signal", "pid": 1, "name": "kill"}'}
    for status, asked in [
        (200, {}),
        (200, {"Host": host.replace("127.0.0.1", "localhost")}),
        (421, {"Host": "evil.example"}),
        (421, {"Host": f"evil.example:{host.partition(':')[2]}"}),
        (403, {"Cookie": None}),
        (403, {"Cookie": cookie[:-1]}),
        (403, {"Cookie": f"other={door.token}"}),
        (403, {"path": "/view?at=0&token=x"}),
        (403, {"path": "/", "Cookie": None}),
        (403, {"path": "/live", "Cookie": None}),
        (403, {"path": "/static/page.js", "Cookie": None}),
        (403, {"path": "/value?task=1&column=error", "Cookie": None}),
        (403, {"path": "/do", **own, "Cookie": None}),
        (403, {"path": "/do", **own, "Origin": None}),
        (403, {"path": "/do", **own, "Origin": "null"}),
        (403, {"path": "/do", **own, "Origin": "http://evil.example"}),
        (403, {"path": "/do", **own, "Origin": "http://127.0.0.1:1"}),
        (415, {"path": "/do", **own, "Content_Type": "text/plain"}),
        (405, {"path": "/do"}),
        (400, {"path": "/view?at=x"}),
        (400, {"path": "/view?at=1&steps=x"}),
        (400, {"path": "/value"}),
        (400, {"path": f"/value?at={'9' * 5000}"}),
        (404, {"path": "/static/../page.py"}),
        (404, {"path": "/static/%2e%2e/page.py"}),
        (303, {"path": f"/?token={door.token}", "Cookie": None}),
    ]:
        found, _, headers = door.ask(**asked)
        assert found == status, asked
        assert "default-src 'none'" in headers["content-security-policy"]
        assert (headers["cache-control"], headers["x-content-type-options"]) == (
            "no-store",
            "nosniff",
        )


def test_the_token_becomes_a_cookie_that_other_pages_cannot_send(door):
    _, _, headers = door.ask(f"/?token={door.token}", Cookie=None)
    assert headers["location"] == "/"
    assert headers["set-cookie"].lower() == (
        f"{door.cookie}; httponly; path=/; samesite=strict".lower()
    )


def test_the_listener_is_on_this_machine_only(door):
    assert door.address.startswith("127.0.0.1:")
    port = f"{int(door.address.partition(':')[2]):04X}"
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [address for _, address, _, state, *_ in sockets if state == "0A"]
    own = [address for address in listening if address.endswith(f":{port}")]
    assert own == [f"0100007F:{port}"]


def test_buttons_are_for_workers_of_this_lesson_only(door):
    for order, status, said in [
        ({"do": "signal", "pid": 1, "name": "kill"}, 409, "process 1 is no worker"),
        ({"do": "signal", "pid": os.getpid(), "name": "kill"}, 409, "is no worker"),
        ({"do": "signal", "pid": door.process.pid, "name": "stop"}, 409, "is no worker"),
        ({"do": "cut", "pid": 1}, 409, "is no worker"),
        ({"do": "by_hand", "name": "retry", "task": 1}, 409, "has no verb retry"),
        ({"do": "by_hand", "name": "cancel", "task": "1; ls"}, 400, "not understood"),
        ({"do": "worker", "lease": "1; ls"}, 400, "not understood"),
        ({"do": "signal"}, 400, "not understood"),
        ({"do": "step", "number": 1, "answer": ""}, 409, "does not exist"),
        ({"do": "rm"}, 400, "not understood"),
        ({}, 400, "not understood"),
        ({"do": "enqueue", "name": "--help", "input": "1"}, 200, "--help"),
        ({"do": "enqueue", "name": "divide", "input": "[6, 3"}, 200, "The input is JSON"),
    ]:
        found, text = door.do(**order)
        assert (found, said in text) == (status, True), (order, text)
    assert door.ask("/do", method="POST", body="{")[0] == 400
    assert door.ask("/do", method="POST", body="[1]")[0] == 400


def test_what_the_buttons_do_to_a_worker(three, buttons):
    def seen():
        return json.loads(buttons.ask("/view?at=999999&task=1")[1])

    def processes():
        return [one["process"] for one in seen()["workers"] if one["process"]]

    found = []
    assert buttons.do(do="worker", lease="4") == (200, "worker glass-1 is started")
    wait_until(lambda: found.extend(processes()) or found, "it is connected")
    process = found[0]
    assert (process["name"], process["slots"]) == ("glass-1", 10)
    assert "task 1 is queued" in buttons.do(do="enqueue", name="hopeless", input="null")[1]
    wait_until(lambda: any(c["id"] == "1" for c in seen()["columns"][4]["cards"]), "it failed")
    said = buttons.do(do="cut", pid=process["pid"])[1]
    assert said.endswith("connections of worker glass-1 are cut")
    assert int(said.split()[0]) > 2
    name = f"{three.db.schema} {process['pid']}"
    connected = "select pid from pg_stat_activity where application_name = %s"
    wait_until(lambda: execute(three.db, connected, name), "it has connected again")
    wait_until(processes, "which is seen")
    assert buttons.do(do="signal", pid=process["pid"], name="stop")[0] == 200
    wait_until(lambda: not processes(), "it has stopped")


def test_verbs_for_a_task():
    verbs = [Control(path, "x", "", History()).verbs for path in lessons()]
    assert (verbs[3], verbs[6], sorted(verbs[7])) == ([], ["retry"], ["cancel", "replay", "retry"])
    names = Control(find("06"), "x", "", History()).names
    assert (names["fulfil"], names["reserve"]) == ("order: Order", "order: Order")


def test_a_crash_by_button(own_server):
    control = Control(find("03"), "lesson_03", own_server.url, History())
    with pytest.raises(Refused, match="DATABASE_URL is not ours"):
        control.crash()
    with pytest.MonkeyPatch.context() as patch, psycopg.connect(own_server.url) as db:
        patch.delenv("DATABASE_URL")
        patch.setattr(embedded, "Embedded", lambda: own_server)
        assert "has started again" in control.crash()
        with pytest.raises(psycopg.OperationalError):
            db.execute("select 1")
    psycopg.connect(own_server.url).close()


def test_without_control_there_are_no_buttons_and_all_of_a_long_value(three):
    long = "long " * 2000
    with page(three.path) as opened:
        assert opened.do(do="crash") == (404, "Not Found")
        _, text, _ = opened.ask("/view?at=0")
        assert json.loads(text)["buttons"] is None
        execute(
            three.db,
            "insert into tasks (name, input, status, error) values ('x', '1', 'failed', %s)",
            long,
        )

        def value(at=999_999):
            return opened.ask(f"/value?at={at}&task=1&column=error")[1]

        wait_until(lambda: value() == long, "the value is seen")
        assert value(0) == ""


@pytest.fixture(scope="session")
def chromium():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        no_browser("playwright is not installed: sh tools/setup.sh browser")
    program = shutil.which("chromium") or no_browser("there is no chromium on PATH")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=quiet)
        yield browser
        browser.close()


def no_browser(why):
    """On a reader's machine the page is not tried. Where all must hold, it must be."""
    if os.environ.get("CI"):
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


@contextmanager
def tab(chromium, opened, **options):
    """The page in a browser, which must neither complain nor ask for anything elsewhere."""
    shown = chromium.new_page(viewport={"width": 1500, "height": 950}, **options)
    complaints, asked = [], []
    shown.on("console", lambda message: complaints.append(message.text))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("dialog", lambda dialog: complaints.append(dialog.message))
    shown.on("request", lambda request: asked.append(urlsplit(request.url).netloc))
    shown.set_default_timeout(within(30_000))
    shown.goto(opened.url)
    shown.locator("header").wait_for()
    try:
        yield shown
        assert complaints == []
        assert set(asked) <= {opened.address, ""}
    finally:
        shown.close()


def cards(shown, status):
    """The ids in a column."""
    found = shown.locator(f".column.{status} .card")
    return found.evaluate_all("cards => cards.map((card) => card.dataset.id)")


def card(shown, status, id):
    return shown.locator(f".column.{status} .card[data-id='{id}']")


# Workers without rows, with leases, and all columns. What the page is given for each lesson is
# tried in test_glass.py.
@pytest.mark.parametrize("number", ["01", "03", "07"])
def test_a_browser_shows_the_tasks_of_a_lesson(number, postgres, chromium, monkeypatch):  # noqa: ARG001
    # Not forked: in lessons 01 and 02 only the command line tells a worker's name.
    monkeypatch.setattr(WorkerProcess, "start", staticmethod(processes.start))
    with (
        tables(number) as lesson,
        page(lesson.path) as opened,
        tab(chromium, opened, color_scheme="dark" if number == "07" else "light") as shown,
    ):
        with lesson.db.autocommit.connect() as connection:
            for name, input in [("divide", [6, 3]), ("divide", [1, 0]), ("sleep", 30)]:
                lesson.tasks.enqueue(connection, name, input)
        card(shown, "queued", 3).wait_for()
        with worker_processes(lesson.path, "ada") as (worker,):
            card(shown, "succeeded", 1).wait_for()
            card(shown, "running", 3).wait_for()
            shown.locator(".worker", has_text="ada").wait_for()
            worker.kill()
        card(shown, "running", 3).click()
        shown.locator(".task", has_text="task 3 sleep").wait_for()
        assert cards(shown, "succeeded") == ["1"]
        names = shown.locator(".column h2").all_inner_texts()
        assert [name.split()[0] for name in names] == lesson_statuses(lesson)


def lesson_statuses(lesson):
    text = (lesson.path / "schema.sql").read_text()
    check = text[text.index("status_known") : text.index("output ")]
    return check.split("'")[1::2]


def test_a_kill_by_button_is_followed_and_the_past_can_be_seen(buttons, chromium):
    with tab(chromium, buttons) as shown:
        shown.get_by_label("task").fill("sleep")
        shown.get_by_label("input, JSON").fill("20")
        shown.get_by_text("enqueue", exact=True).click()
        card(shown, "queued", 1).wait_for()

        shown.get_by_text("start a worker").click()
        card(shown, "running", 1).get_by_text("glass-1").wait_for()
        shown.get_by_text("start a worker").click()
        shown.locator(".worker", has_text="glass-2").wait_for()

        first = shown.locator(".worker", has_text="glass-1")
        first.get_by_text("stand still").click()
        first.get_by_text("go on").wait_for()
        first.get_by_text("kill -9").click()
        first.get_by_text("no process").wait_for()
        shown.locator("footer li", has_text="worker 1 (glass-1) is in the table no more").wait_for()
        card(shown, "running", 1).get_by_text("glass-2").wait_for()
        assert card(shown, "running", 1).get_by_text("attempt 2").count() == 1

        told = shown.locator("footer li", has_text="attempt 1, worker 1")
        told.locator("button").first.click()
        card(shown, "running", 1).get_by_text("attempt 1").wait_for()
        assert shown.locator(".live").count() == 0
        shown.keyboard.press("ArrowLeft")
        shown.keyboard.press("ArrowLeft")
        card(shown, "queued", 1).wait_for()
        assert (cards(shown, "queued"), cards(shown, "running")) == (["1"], [])
        shown.keyboard.press("ArrowRight")
        shown.keyboard.press("ArrowRight")
        card(shown, "running", 1).get_by_text("attempt 1").wait_for()
        shown.keyboard.press("Escape")
        card(shown, "running", 1).get_by_text("attempt 2").wait_for()
        assert shown.locator(".live").count() == 1


def test_a_page_that_nobody_answers_is_not_called_live(postgres, chromium):  # noqa: ARG001
    with chromium.new_page() as shown:
        with environment(LESSON_SCHEMA=f"test_{os.getpid()}_none"), page(find("03")) as opened:
            shown.set_default_timeout(within(30_000))
            shown.goto(opened.url)
            shown.get_by_text("● live").wait_for()
        shown.get_by_text("○ not connected").wait_for()
        assert shown.locator(".live").count() == 0


def test_markup_is_text(postgres, chromium):  # noqa: ARG001
    with tables("06") as six, page(six.path) as opened, tab(chromium, opened) as shown:
        with six.db.connect(autocommit=True, application_name=MARKUP) as db:
            for statement in [
                "insert into workers (name, alive_until) values (%s, now() + interval '1 hour')",
                "insert into tasks (name, queue, input, status, error, attempt, worker_id)"
                " values (%s, %s, to_json(%s::text), 'failed', %s, 1, 1)",
                "insert into tasks (name, queue, input, status, attempt, worker_id, started_at)"
                " values (%s, %s, to_json(%s::text), 'running', 1, 1, now())",
                "insert into event_log (task_id, position, kind, name, input, output, attempt)"
                " values (1, 1, 'step', %s, to_json(%s::text), to_json(%s::text), 1)",
                "insert into queue_limits values (%s, 3)",
            ]:
                db.execute(statement, [MARKUP] * statement.count("%s"))
            card(shown, "failed", 1).click()
            shown.locator(".task tr").first.wait_for()
            with ThreadPoolExecutor() as aside, six.db.connect(autocommit=True) as waiter:
                with db.transaction():
                    db.execute("update tasks set priority = 1")
                    waiting = aside.submit(waiter.execute, "update tasks set priority = 2")
                    shown.locator(".wait").first.wait_for()
                waiting.result(within(20))
            shown.locator("footer li", has_text="waits for").first.wait_for()
        assert shown.locator("img, body script").count() == 0
        for part in ["header", ".card", ".worker", ".task", "footer"]:
            assert MARKUP[:20] in shown.locator(part).first.inner_text(), part
