# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""Leaves a sidecar alone that failed."""

import time


class Breaker:
    """Closed at first. Opens after a few failures in a row, each time for longer; one success closes it."""

    FAILURES = 2
    SHORTEST = 1.0
    LONGEST = 60.0

    def __init__(self, clock=time.monotonic):
        self._clock = clock
        self._failures = 0
        self._until = 0.0

    def allows(self):
        """Whether the sidecar may be asked."""
        return self._clock() >= self._until

    def succeeded(self):
        self._failures = 0

    def failed(self):
        """Notes a failure; for how long the sidecar is left alone now."""
        self._failures += 1
        more = self._failures - self.FAILURES
        if more < 0:
            return 0.0
        pause = min(self.SHORTEST * 2 ** min(more, 10), self.LONGEST)
        self._until = self._clock() + pause
        return pause
