"""How often a worker looks for work, and how long a failed task waits."""

import random
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Timing:
    """In seconds. poll: between two looks for work. seldom: the same, while hints arrive.

    upkeep: between two rounds of chores, at most. probe: between two hints to oneself.
    """

    poll: float = 0.1
    seldom: float = 1.0
    upkeep: float = 0.4
    probe: float = 5.0
    first_backoff: timedelta = timedelta(seconds=1)
    max_backoff: timedelta = timedelta(hours=1)

    def backoff(self, attempt: int) -> timedelta:
        """How long to wait after a failed attempt: exponential backoff with full jitter.

        A random time from 0 up to 1 s after the first attempt, 2 s after the second, 4 s, 8 s ...
        and never above an hour. Jitter, because tasks that failed together should not come back
        together. See AWS, "Exponential Backoff and Jitter".
        """
        doublings = min(attempt - 1, 12)  # 2 ** 10,000 does not fit into a duration
        return random.uniform(0, 1) * min(self.first_backoff * 2**doublings, self.max_backoff)
