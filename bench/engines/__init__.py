"""Other engines on Postgres, as their own documentation sets them up, for `python -m bench peers`.

One module for each, with the same three functions, and the same two tasks: `nothing`, and `steps`,
of that many steps. Each verb is run in a process of its own.
"""
