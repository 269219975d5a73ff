"""Paths that do not decide: who answers them, to which methods, and answers that take long to make.

It knows methods and bodies. What stands on a page is the business of the service and of `health.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from fairvisor.clock import Now
from fairvisor.errors import MethodNotAllowed, NotFound
from fairvisor.http.hub import BodyRule
from fairvisor.http.request import Request
from fairvisor.response import Answer

NO_BODY: Final = BodyRule(0)
READING: Final = ("GET", "HEAD")


class Unmade:
    """An answer that is made a part at a time: whoever reads it before it is whole makes what is missing."""

    def __init__(self) -> None:
        self._made: Answer | None = None

    def advance(self) -> bool:
        """Make one more part; is it whole now?"""
        raise NotImplementedError

    def whole(self) -> Answer:
        """Return the answer, after making what is missing of it."""
        while self._made is None:
            self.advance()
        return self._made


class Sliced(Unmade):
    """An answer that is made a slice at a time, so that others are answered in between.

    A transport that can calls `advance` until it is true, whenever it likes; one that cannot asks for the whole answer.
    `told` is called with what goes wrong; then the answer is a 500.
    """

    def __init__(self, head: str, pieces: Iterator[bytes], told: Callable[[Exception], None]) -> None:
        super().__init__()
        self._head = head
        self._pieces = pieces
        self._told = told
        self._body: list[bytes] = []

    def advance(self) -> bool:
        """Make one more slice; is it whole now?"""
        if self._made is None:
            try:
                self._body.append(next(self._pieces))
            except StopIteration:
                self._made = Answer(HTTPStatus.OK, self._head, b"".join(self._body))
            except Exception as error:  # it is made between other requests: nobody else would answer this one
                self._told(error)
                self._made = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, "", b"")
        return self._made is not None


class Decided(Unmade):
    """An answer that cannot be made before something is worked out, a slice at a time: a transport drives it as it
    drives `Sliced`. What is worked out never raises, and neither does `answer`."""

    def __init__(self, advance: Callable[[], bool], answer: Callable[[], Answer | Sliced]) -> None:
        super().__init__()
        self._advance = advance
        self._answer = answer

    def advance(self) -> bool:
        """Work out one more slice; is the answer made now?"""
        if self._made is None and self._advance():
            answer = self._answer()
            self._made = answer if isinstance(answer, Answer) else answer.whole()
        return self._made is not None


class Page(NamedTuple):
    """A path that does not decide: who answers it, to which methods, and whether only gateways may ask."""

    answer: Callable[[Request, Now], Answer | Sliced]
    methods: tuple[str, ...]
    body: BodyRule = NO_BODY
    guarded: bool = False


def page_at(pages: Mapping[str, Page], path: str) -> Page:
    """Raises NotFound when there is none."""
    page = pages.get(path)
    if page is None:
        raise NotFound(f"there is nothing at {path[:200]}")
    return page


def open_page(page: Page, path: str, request: Request, now: Now) -> Answer | Sliced:
    """Return what a page answers. Raises MethodNotAllowed for a method that it does not take."""
    if request.method not in page.methods:
        raise MethodNotAllowed(f"{path} takes {', '.join(page.methods)}", page.methods)
    return page.answer(request, now)


def path_of(target: str) -> str:
    """The path of a request target; of an absolute form (RFC 9112 3.2.2) what follows the authority."""
    path = target.partition("?")[0]
    if not path.startswith("/") and "://" in path:
        path = "/" + path.partition("://")[2].partition("/")[2]
    return path
