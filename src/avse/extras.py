"""Optional packages: one way to import them, and one message with its pip line where they are missing.

Which extra holds which package stands in pyproject.toml alone; a test holds both together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtraError(ImportError):
    """An optional package is missing; the message names the extra that brings it and the pip line."""


def pip_line(extra: str) -> str:
    """Return what to type for an extra; the double quotes are for every shell, Windows' too.

    >>> pip_line("serve")
    'pip install "avse[serve]"'
    """
    return f'pip install "avse[{extra}]"'


@contextmanager
def needs(extra: str, what: str, note: str = "") -> Iterator[None]:
    """Guard imports of what an extra brings.

    Args:
        extra: its name in pyproject.toml.
        what: who needs it, as the message begins.
        note: another way out, as the message ends.

    Raises:
        MissingExtraError: an import in the block failed.

    >>> with needs("plots", "the plot"):
    ...     import no_such
    Traceback (most recent call last):
        ...
    avse.extras.MissingExtraError: the plot needs the extra plots (No module named 'no_such'): pip install "avse[plots]"
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ImportError as error:
        line = f"{what} needs the extra {extra} ({error}): {pip_line(extra)}{note}"
        raise MissingExtraError(line, name=error.name) from error
