"""Exercise 1: two customers who want any seat at the same time get two, and neither waits."""


def test_1_sell_first(lesson, db):
    with db.engine.connect() as one, db.engine.connect() as other:
        assert lesson.queries.Querier(one).sell_first_seat(customer="Ada") == 1
        other.exec_driver_sql("set local statement_timeout = '2s'")
        assert lesson.queries.Querier(other).sell_first_seat(customer="Bea") == 2
        other.commit()
        one.rollback()
    with db.autocommit.connect() as connection:
        queries = lesson.queries.Querier(connection)
        rest = [queries.sell_first_seat(customer="Cleo") for _ in range(6)]
        assert rest == [1, 3, 4, 5, 6, None]
        buyers = [seat.sold_to for seat in queries.list_seats()]
    assert buyers == ["Cleo", "Bea", "Cleo", "Cleo", "Cleo", "Cleo"]
