"""The authors' tool: keeps the copies honest that the lessons are. `python -m tools --help`.

A verb is a function of a Course. It yields its findings, one line each: file, fault and remedy.
"""
