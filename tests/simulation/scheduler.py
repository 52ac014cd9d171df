"""Virtual time: a heap of actions. Single-threaded, and the same seed gives the same run to the last event."""

import heapq
from collections.abc import Callable
from typing import TypeAlias

Action: TypeAlias = Callable[[], None]


class Scheduler:
    """Runs actions in the order of their virtual time; those of the same instant in the order they were made."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.events = 0
        self._heap: list[tuple[int, int, Action]] = []
        self._made = 0

    def after(self, delay_ms: int, action: Action) -> None:
        heapq.heappush(self._heap, (self.now_ms + max(0, delay_ms), self._made, action))
        self._made += 1

    def run(self, until_ms: int, is_done: Callable[[], bool] = lambda: False) -> None:
        """Run until a time, or until it is done, whichever comes first."""
        while self._heap and self._heap[0][0] <= until_ms and not is_done():
            self.now_ms, _, action = heapq.heappop(self._heap)
            self.events += 1
            action()
        if not is_done():
            self.now_ms = max(self.now_ms, until_ms)
