"""Exercise 1: an INSERT of many orders enqueues a task for each hundred of them."""

INSERT = "insert into orders (buyer, amount) select 'zoe', n from generate_series(1, %s) as n"


def test_1_many_orders(lesson, db):
    @lesson.tasks.task
    def fulfil_orders(_):
        pass

    with db.connect(autocommit=True) as connection:

        def tasks():
            rows = connection.execute("delete from tasks returning id, name, input").fetchall()
            assert {name for _, name, _ in rows} <= {"fulfil_orders"}
            return [input for _, _, input in sorted(rows)]

        connection.execute("insert into accounts values ('zoe', 100)")
        connection.execute(INSERT, (3,))
        (orders,) = tasks()
        assert [order["amount"] for order in orders] == [1, 2, 3]
        assert {order["buyer"] for order in orders} == {"zoe"}
        assert all(order["id"] for order in orders)

        connection.execute(INSERT, (250,))
        assert [len(orders) for orders in tasks()] == [100, 100, 50]
        connection.execute(INSERT, (0,))
        assert tasks() == []
        with connection.transaction(force_rollback=True):
            connection.execute(INSERT, (5,))
        assert tasks() == []
