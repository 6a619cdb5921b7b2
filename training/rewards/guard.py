"""A second line of defence around rewards that read text: text cannot become action.

The rewards are written to evaluate nothing. While `guarded` is on, Python's audit events hold that:
compiling text, writing a file, starting a process or opening a connection is refused. This is no
sandbox for a user's own code, which is not run under it.
"""

from __future__ import annotations

import os
import re
import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What may be compiled: SymPy reads a number, a quotient of numbers or a name by evaluating the
# constructor calls it has made of it, and modules imported late define data classes.
_NUMBER = r"(Integer|Float|Rational) \('?[0-9.]+(e[-+]?[0-9]+)?'? ?(, ?[0-9]+ ?)?\)"
_HARMLESS = re.compile(
    rf"-?{_NUMBER}([-+*/]{_NUMBER})*"
    r"|Symbol \('[A-Za-z][A-Za-z0-9_]*' \)|[A-Za-z][A-Za-z0-9_]*"
    r"|from sympy import \*"
    r"|lambda _cls, [\w, ]*: _tuple_new\(_cls, \([\w, ]*\)\)"
)
# Statements, which an expression that is evaluated cannot start with.
_GENERATED = ("def __create_fn__", "def monomial_")
_ACTIONS = {
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename"),
    *("subprocess.Popen", "socket.connect", "socket.bind", "ctypes.dlopen"),
}


class _Hook:
    """An audit hook; it cannot be taken out again, only switched."""

    def __init__(self) -> None:
        self.installed = False
        self.on = False
        # Remembered, because a library may swallow the error.
        self.refused: str | None = None

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and _is_action(event, args):
            self.refused = f"{event} {reprlib.repr(args)}"
            raise PermissionError(f"a reward tried to {self.refused}")


_HOOK = _Hook()


@contextmanager
def guarded() -> Iterator[None]:
    """Refuse actions inside; raises PermissionError on leaving if there was one, even if caught."""
    if not _HOOK.installed:
        sys.addaudithook(_HOOK)
        _HOOK.installed = True
    _HOOK.on, _HOOK.refused = True, None
    try:
        yield
    finally:
        _HOOK.on = False
    if _HOOK.refused:
        raise PermissionError(f"a reward tried to {_HOOK.refused}")


def _is_action(event: str, args: tuple[Any, ...]) -> bool:
    if event == "compile":
        source, name = args
        text = source.decode() if isinstance(source, bytes) else source
        return (
            isinstance(text, str)
            and name == "<string>"
            and not text.startswith(_GENERATED)
            and _HARMLESS.fullmatch(text.strip()) is None
        )
    if event == "open":
        flags = args[2]
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
    return event in _ACTIONS
