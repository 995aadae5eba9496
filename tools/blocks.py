"""Blocks of a page that a program writes: what is between `<!-- name -->` and `<!-- /name -->`."""


class NoBlock(LookupError):
    """The page has no place for the block."""


def put(page: str, name: str, content: str) -> str:
    """The page with `content` in the block; raises NoBlock if its two lines are not there."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found_start, rest = page.partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise NoBlock(f"there are no lines {start.strip()} and {end}")
    middle = f"\n{content.strip(chr(10))}\n\n" if content.strip() else ""
    return f"{before}{start}{middle}{end}{after}"
