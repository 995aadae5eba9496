"""The glass box: a lesson's own rows, live, from the outside. `make watch LESSON=03`.

follow     the database: a snapshot, then every commit, in the order of the commits
decoding   how Postgres prints a change that it reads from its log
activity   who is connected, which processes these are, who waits for whose lock
history    what has happened; the state at any moment of it
view       a moment as plain data; story has the sentences of the time line
page       the page, on 127.0.0.1;  terminal: the same without a browser
control    the buttons, with --control

The lesson's code and tables know nothing of it. It makes nothing in the database but a temporary
replication slot, which ends with its connection, and holds no lock that a lesson could wait for.
"""
