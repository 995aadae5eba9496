"""What every lesson uses and no lesson explains.

postgres    a Postgres server: the one in DATABASE_URL, or an embedded one
session     what a connection to it sets, and what is checked at the door
tables      the lesson's own database schema on that server, made from its schema.sql and app.sql
database    the two together, and SQLAlchemy engines bound to them
generated   are the files in db/ those that sqlc made from this schema.sql and queries.sql?
story       narration: one time-stamped line per fact, claims that must hold, a look at the tables
verbs       the verbs of main.py: worker, enqueue, status, ...
processes   worker processes: start, pause, kill, wait
outside     the world outside the database, where no rollback reaches: a file with a line per effect
testing     the fixtures of the tests
"""
