"""The fields of a form: `multipart/form-data` (RFC 7578), as audio and pictures are sent, and urlencoded.

A form is read only where every parser reads it the same way; of anything else (a second boundary, line ends that only
some accept, names that are escaped or encoded, what follows the end) nothing is read, and the caller knows that. This
module knows forms. It must not know which fields matter, nor JSON.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote_plus

MAX_FIELDS: Final = 1000
"""A form of more fields is not read: none of an LLM API has more than some dozens."""

_MULTIPART: Final = re.compile(
    rb"multipart/form-data\s*;\s*(?:charset=[\w-]+\s*;\s*)?boundary="
    rb"(?:\"([\w'()+,./:=? -]{1,70})\"|([\w'()+,./:=?-]{1,70}))",
    re.ASCII | re.IGNORECASE,
)
_URLENCODED: Final = re.compile(
    rb"application/x-www-form-urlencoded\s*(?:;\s*charset=\"?utf-8\"?\s*)?", re.IGNORECASE
)
_IS_FORM: Final = re.compile(rb"multipart/|application/x-www-form-urlencoded", re.IGNORECASE)
_DISPOSITION: Final = re.compile(
    rb'form-data; *name="?([^"\\%;]*?)"?( *; *filename\*?="?[^"\\]*"?)*', re.IGNORECASE
)
_FIELD_LINE: Final = re.compile(
    rb"(content-disposition|content-type|content-length): *([^\r\n]*)", re.IGNORECASE
)
_NESTED: Final = b"multipart/"


class Form(NamedTuple):
    """The text fields of a form in their order, repeated ones included, and how many files it has.

    `ends_in_file` says that the body was cut inside a file, so that what is missing is mostly that file.
    """

    fields: list[tuple[str, str]]
    files: int = 0
    ends_in_file: bool = False


def is_form(content_type: bytes) -> bool:
    """Return whether a body of this type is a form, whatever may be wrong with it."""
    return _IS_FORM.search(content_type) is not None


def read_form(content_type: bytes, body: bytes, *, cut: bool = False) -> Form | None:
    """Return the fields of a form; None for what is none, or what not every parser reads the same way.

    Of a `cut` form the fields that are whole are given.
    """
    match = _MULTIPART.fullmatch(content_type)
    try:
        if match is not None:
            return _multipart(body, b"--" + (match[1] or match[2]), cut)
        if _URLENCODED.fullmatch(content_type):
            return _urlencoded(body.rpartition(b"&")[0] if cut else body)
    except UnicodeDecodeError:
        pass
    return None


def _multipart(body: bytes, delimiter: bytes, cut: bool) -> Form | None:
    if body.count(b"\n" + delimiter) != body.count(
        b"\r\n" + delimiter
    ):  # some take bare line feeds for line ends
        return None
    first, *parts = (b"\r\n" + body.removeprefix(b"\r\n")).split(b"\r\n" + delimiter, MAX_FIELDS + 2)
    if first or not parts or len(parts) > MAX_FIELDS + 1:
        return None
    last = parts.pop()
    if not cut and last not in (b"--", b"--\r\n"):
        return None
    fields: list[tuple[str, str]] = []
    files = 0
    for part in parts:
        head, blank, content = part.partition(b"\r\n\r\n")
        named = _name_of(head)
        if not blank or named is None:
            return None
        name, is_file = named
        if is_file:
            files += 1
        else:
            fields.append((name, content.decode()))
    named = _name_of(last.partition(b"\r\n\r\n")[0]) if cut else None
    ends_in_file = named is not None and named[1]
    return Form(fields, files + ends_in_file, ends_in_file)


def _name_of(head: bytes) -> tuple[str, bool] | None:
    """The name of a part, and whether it is a file; None for a head that parsers read differently."""
    start, *lines = head.split(b"\r\n")
    disposition = None
    for line in lines:
        match = _FIELD_LINE.fullmatch(line)
        if match is None or match[2].lower().startswith(_NESTED):
            return None
        if match[1].lower() == b"content-disposition":
            if disposition is not None:
                return None
            disposition = _DISPOSITION.fullmatch(match[2])
            if disposition is None:
                return None
    if start.strip(b" \t") or disposition is None:
        return None
    return disposition[1].decode(), disposition[2] is not None


def _urlencoded(body: bytes) -> Form | None:
    text = body.decode()
    if ";" in text or text.count("&") >= MAX_FIELDS:  # some divide fields at a semicolon
        return None
    pairs = [pair.partition("=") for pair in text.split("&")]
    return Form([(unquote_plus(name), unquote_plus(value)) for name, _, value in pairs])
