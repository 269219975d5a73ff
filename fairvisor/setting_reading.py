"""How one setting is read: from its flag, its variable or a secret's file, and what is said when the value is wrong.

White space around a value does not count, since files, Secrets and `export` lines leave line ends behind; a control
byte within is an error, whatever kind of value it is. This module knows how settings are declared, not which there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Final, NamedTuple

from fairvisor.errors import SettingsError
from fairvisor.secret_values import rotating, secret_file

PREFIX: Final = "FAIRVISOR_"
FILE_SUFFIX: Final = "_FILE"  # of the variable that names a secret's file
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # C0, DEL, C1


class Declared(NamedTuple):
    """One setting as the command line and the documentation show it. The flag of a secret names a file."""

    name: str
    variable: str
    flag: str
    default: str
    help: str
    secret: bool

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables that set it, of which one may be set: a secret may also be in a file."""
        return (self.variable, self.variable + FILE_SUFFIX) if self.secret else (self.variable,)


def setting(default: str, parse: Callable[[str], Any], text: str, *, secret: bool = False) -> Any:
    """Declare a setting: its default as users would write it, its parser, and the explaining sentence."""
    metadata = {"default": default, "parse": parse, "help": text, "secret": secret}
    return field(repr=not secret, metadata=metadata)


def value_of(
    declared: Declared, parse: Callable[[str], Any], environ: Mapping[str, str], flags: Mapping[str, str]
) -> Any:
    """Return the parsed value of a setting; of one that is not set None, of a secret ().

    Raises:
        SettingsError: the value is wrong, or a secret is given twice.

    """
    where, given = _given(declared, environ, flags)
    if not given:
        return () if declared.secret else None
    in_file = declared.secret and where != declared.variable
    try:
        if in_file:
            return rotating(parse)(secret_file(_printable(given.strip())))
        return parse(given if declared.secret else _printable(given))
    except ValueError as error:
        shown = _shown(given, declared, in_file=in_file)
        raise SettingsError(f"{where}: {shown} is wrong: {error}") from None


def _shown(given: str, declared: Declared, *, in_file: bool) -> str:
    """Return a wrong value for a message, unless it may be a secret: a URL may hold a password or a token, and the
    secret itself is given by mistake where the path of its file should be."""
    if in_file:
        is_path = given.lstrip().startswith(("/", "./", "../"))
        return (
            repr(given)
            if is_path
            else "(not shown, as it may be the secret; allowed is the path of its file)"
        )
    return "(a secret)" if declared.secret or "@" in given or "?" in given else repr(given)


def _given(declared: Declared, environ: Mapping[str, str], flags: Mapping[str, str]) -> tuple[str, str]:
    """Return where a setting is set, and its text: the flag wins over the variables, those over the default.

    A secret of white space is one that is set, and wrong: as an unset one it would let everybody in.
    """
    places = [(declared.flag, flags.get(declared.name, ""))]
    places += [(variable, environ.get(variable, "")) for variable in declared.variables]
    if not declared.secret:
        places = [(where, given.strip()) for where, given in places]
    flag, *variables = places
    named = [place for place in variables if place[1]]
    if flag[1]:
        return flag
    if len(named) > 1:
        raise SettingsError(f"{' and '.join(declared.variables)} are both set: only one may be")
    return named[0] if named else (declared.variable, declared.default)


def _printable(given: str) -> str:
    found = _CONTROL.search(given)
    if found is not None:
        raise ValueError(f"it holds the control character {found[0]!r}, which no setting may")
    if not given.isascii() and any("\ud800" <= char <= "\udfff" for char in given):  # PEP 383
        raise ValueError("it is not UTF-8, which every setting is")
    return given
