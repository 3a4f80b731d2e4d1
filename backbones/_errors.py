"""The error for mistakes of the user and the one for runs ended by a signal, shared by backbones, engine and tools."""


class UserError(ValueError):
    """One sentence that names the thing, the value seen and what is accepted.

    Command lines print it without a traceback and leave with exit code 2; in a program it is an ordinary `ValueError`.
    """


class DamagedFile(UserError):
    """A file that is empty, truncated or no checkpoint at all: a download of it should be made again."""


class NotAvailable(UserError):
    """Published weights that cannot be had: no network, or no such place any more."""


class Interrupted(BaseException):
    """A signal ended a run in good order; the text says what was kept, the exit code is 128 + `signum`."""

    def __init__(self, signum: int, sentence: str) -> None:
        super().__init__(sentence)
        self.signum = signum
