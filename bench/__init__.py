"""`make bench`: what each lesson reaches, what it costs, and what the bare database reaches.

measures    what is measured, and what becomes of the rounds: medians, spreads, ratios
lesson      one round of one lesson, with real worker processes
main        such a worker process; jobs: the tasks that it runs
floor       the same work in plain psycopg with the fewest statements
pgbench     many clients at once, in C
growth      the same drain in a table that has grown
report      the tables, for the terminal and for docs/numbers.md and docs/measurements.md
picture     docs/numbers.svg
"""
