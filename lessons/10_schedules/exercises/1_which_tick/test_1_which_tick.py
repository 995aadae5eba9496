"""Exercise 1: a task knows for which tick it was started."""

from datetime import UTC


def test_1_which_tick(lesson, db):
    with db.autocommit.connect() as connection:
        set_schedule = lesson.schedules.set_schedule
        set_schedule(connection, "s", "* * * * * *", "nothing", [1, None], missed="all")
        queries = lesson.queries.Querier(connection)
        with db.connect(autocommit=True) as by_hand:
            back = "update schedules set next_at = next_at - interval '3 s' returning next_at"
            ((first,),) = by_hand.execute(back).fetchall()
            lesson.schedules.tick(queries)
            tasks = by_hand.execute("select input from tasks order by id").fetchall()
    inputs = [input for (input,) in tasks]
    assert len(inputs) >= 2
    assert all(input.keys() == {"tick", "input"} for input in inputs)
    assert [input["input"] for input in inputs] == [[1, None]] * len(inputs)
    assert inputs[0]["tick"] == f"{first.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    assert len({input["tick"] for input in inputs}) == len(inputs)
