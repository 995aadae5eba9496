"""Exercise 2: a seat is given back by the customer who has it, and once."""

from concurrent.futures import ThreadPoolExecutor

from shared.processes import wait_until


def test_2_give_back(lesson, db):
    with db.autocommit.connect() as connection:
        queries = lesson.queries.Querier(connection)
        assert queries.sell_seat(customer="Ada", number=1) == 1
        assert queries.give_back(customer="Bea", number=1) == 0, "Bea does not have it"
        assert queries.give_back(customer="Ada", number=2) == 0, "nobody has it"
        give_back_at_the_same_time(lesson, db)
        seats = {seat.number: seat for seat in queries.list_seats()}
        assert (seats[1].sold_to, seats[1].given_back) == (None, 1)
        assert (seats[2].sold_to, seats[2].given_back) == (None, 0)
        assert queries.sell_seat(customer="Bea", number=1) == 1, "it can be sold again"


def give_back_at_the_same_time(lesson, db):
    with ThreadPoolExecutor() as pool, db.engine.connect() as two, db.engine.connect() as one:
        first, second = (lesson.queries.Querier(connection) for connection in (one, two))
        second_pid = second.backend_pid()
        assert first.give_back(customer="Ada", number=1) == 1
        answer = pool.submit(second.give_back, customer="Ada", number=1)
        with db.autocommit.connect() as connection:
            others = lesson.queries.Querier(connection)
            wait_until(lambda: others.waits_for(pid=second_pid) is not None, "the second waits")
        one.commit()
        assert answer.result(timeout=20) == 0, "it was given back once"
        two.commit()
