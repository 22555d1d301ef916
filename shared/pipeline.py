"""Reading, mapping and sending overlap: while a page is on its way, the next is mapped and the one after it is read."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from typing import Protocol, TypeVar

from shared.delivery import Delivery, Sent
from shared.errors import TidemarkError
from shared.source import Page


class OnItsWay(Protocol):
    """A page that is being sent, with what its account needs."""

    @property
    def sent(self) -> Sent:
        """What Delivery.send has returned."""


T = TypeVar("T", bound=OnItsWay)


def overlapped(
    delivery: Delivery,
    pages: Iterator[Page],
    in_flight: int,
    send: Callable[[Page], T],
    account: Callable[[T], None],
    may_go_on: Callable[[], bool],
) -> bool:
    """Send page after page, and account for each in its order. Whether the pages came to their end.

    Up to `in_flight` batches are on their way at once; with 0, a page has arrived before the next is sent. `may_go_on`
    is asked after each page. Where something fails, what is on its way is accounted for all the same, or at least
    noted, before that is raised.
    """
    on_their_way: deque[T] = deque()
    complete = True
    failure: TidemarkError | None = None
    try:
        # closed here, so that the reader has ended before its connection is
        with closing(read_ahead(pages)) as ahead:
            while complete:
                try:
                    if (page := next(ahead, None)) is None:
                        break
                    on_their_way.append(send(page))
                except TidemarkError as error:
                    failure = error
                    break
                while len(on_their_way) > min(1, in_flight) and (
                    sum(one.sent.batches for one in on_their_way) >= in_flight
                ):
                    account(on_their_way.popleft())
                complete = may_go_on()
        while on_their_way:
            account(on_their_way.popleft())
    finally:
        for one in on_their_way:
            delivery.note_accepted(one.sent)
    if failure is not None:
        raise failure
    return complete


def read_ahead(pages: Iterator[Page]) -> Generator[Page, None, None]:
    """Read the next page in a thread of its own while one is worked on."""
    context = copy_context()

    def read() -> Page | None:
        return next(pages, None)

    with ThreadPoolExecutor(1, "reader") as pool:
        upcoming = pool.submit(context.run, read)
        while (page := upcoming.result()) is not None:
            upcoming = pool.submit(context.run, read)
            yield page
