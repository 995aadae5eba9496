"""The authors' tool: keeps the copies honest that the lessons are. `python -m tools --help`.

tree       the lessons and their files        symbols    a file's symbols, with nothing left over
changes    what a lesson changed              carry      a fix in one lesson, into the later ones
markdown   fences, links, headings            readme     snippets, the table of changes, links
output     console blocks                     generated  sqlc
diffs      diffs/                             patches    a patched copy, and how a test ends on it
breaks     each fails its test                exercises  each fails unsolved and passes solved
copies     a lesson runs anywhere             check      all of it
postgres   psql, and an end to the embedded server

Every check takes a Course and returns its findings: one line each, with file, fault and remedy.
"""
