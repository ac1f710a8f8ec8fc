"""A bounded queue between two threads that either side can close."""

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """Items on their way from one thread to the next, at most ``capacity`` of them.

    Args:
        capacity: items that may wait.

    Example:
        >>> channel = Channel[int](2)
        >>> channel.put(1), channel.put(2), channel.put_newest(3)
        (True, True, 1)
        >>> channel.close()
        >>> channel.put(4), channel.take(8), channel.take(8)
        (False, [2, 3], [])
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing more is taken in."""
        return self._closed

    def put(self, item: T) -> bool:
        """Add an item, waiting for room; False, without the item, once the channel is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)
            if self._closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def put_newest(self, item: T) -> int:
        """Add an item in place of the oldest where there is no room.

        Returns:
            How many items were lost by it: 0, or 1, which is this item once the channel is closed.
        """
        with self._changed:
            if self._closed:
                return 1
            lost = int(len(self._items) == self._capacity)
            if lost:
                self._items.popleft()
            self._items.append(item)
            self._changed.notify_all()
            return lost

    def take(self, most: int) -> list[T]:
        """Wait for an item and return all that are there, ``most`` at a time.

        Returns:
            The oldest first; empty when the channel is closed and nothing is left.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            taken = [self._items.popleft() for _ in range(min(most, len(self._items)))]
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """Take nothing more in; what is there can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Close and drop what is there."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
