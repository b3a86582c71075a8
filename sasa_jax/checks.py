"""Errors that name what was wrong, what is allowed and the nearest name."""

import difflib
import typing
from collections.abc import Iterable


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A sentence part " (did you mean 'x'?)", or nothing if no allowed name is near."""
    matches = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def check_choice(argument: str, value: object, choices: object) -> None:
    """Raises ValueError unless `value` is one of `choices`, an iterable or a `typing.Literal`."""
    allowed = typing.get_args(choices) or tuple(choices)
    if value not in allowed:
        names = ", ".join(map(repr, allowed))
        raise ValueError(
            f"{argument} must be one of {names}; got {value!r}{nearest(value, allowed)}"
        )
