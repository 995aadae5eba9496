"""Exercise 1: each statement is parsed once."""

import sqlalchemy as sa
from sqlalchemy.sql.elements import TextClause

from shared.testing import wait_for_status, working


def test_1_parsed_once(lesson, db, monkeypatch):
    parsed = []
    init = TextClause.__init__

    def counted(self, text, *args):
        parsed.append(text)
        init(self, text, *args)

    @lesson.context.durable
    def steps(ctx, count):
        return sum(ctx.step(one, n) for n in range(count))

    def one(_key, _n):
        return 1

    monkeypatch.setattr(TextClause, "__init__", counted)
    with working(lesson.worker.Worker(db, "w")), db.autocommit.connect() as connection:
        ids = [lesson.tasks.enqueue(connection, "steps", 5) for _ in range(20)]
        outputs = [wait_for_status(db, id, "succeeded", "failed").output for id in ids]
    assert outputs == [5] * 20
    ours = [text for text in parsed if text.startswith("-- name: ")]
    assert len(ours) == len(set(ours)), "each of them once"
    again = sa.text(ours[0]) if ours else sa.text("select 1")
    assert sa.text(str(again)) is not again, "the program's own statements are left alone"
