"""Errors that a user can mend: a command shows one as a single line; any other is a bug of ours.

Each also is the built-in error of its kind, so that callers in Python catch what they expect.
"""


class UserError(ValueError):
    """An input that cannot work; the message says what was given, what is allowed, what to do."""


class NotFound(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class AlreadyExists(UserError, FileExistsError):
    """A file or folder that is there and would be lost."""


class IsAFolder(UserError, IsADirectoryError):
    """A folder where a file is wanted."""


class Unreachable(UserError, ConnectionError):
    """A service on the network that does not answer, or refuses."""


class NotFinite(UserError, FloatingPointError):
    """A vector, a loss or a score that is not a finite number."""


class WrongType(UserError, TypeError):
    """An argument of another type than the function takes."""
