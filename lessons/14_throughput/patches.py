"""Patches: a function is changed while it is under way, and each run keeps to what it has begun."""

import re

from errors import final
from event_log import Entry
from events import Events
from inputs import BadInput


class Patches(Events):
    """The part of a Context that has to do with changes of its function."""

    def patched(self, name: str) -> bool:
        """Does this run do what the patch of this name has changed? The same answer in every run.

        True if the log ends here: then a marker is recorded, and later runs find it. False if the
        log goes on without one: it is of a run that came by here before there was the patch. The
        first answer holds for the whole run: a loop must not change half-way.
        """
        with final():
            check_patch(name)
        self._log.check()
        with self._fence.engine():
            patches = self._log.patches
            if name not in patches:
                patches[name] = self._log.is_at_end()
                if patches[name]:
                    self._log.next("patch", name, "null")
                    self._log.record(
                        Entry(
                            position=self._log.position,
                            kind="patch",
                            name=name,
                            input=None,
                            output=True,
                            error=None,
                            settled=False,
                            completion=None,
                        )
                    )
            return patches[name]


def check_patch(name: object) -> None:
    if not (isinstance(name, str) and re.fullmatch(r"[ -~]{1,200}", name)):
        raise BadInput(
            f"a patch is named with 1 to 200 printable ASCII characters, not {name!r:.50}"
        )
