"""The one error type that a user sees as a sentence.

Everything a user can cause (a wrong folder, a half-written file, a model from elsewhere) raises
`UserError` with ONE sentence that names the thing, what is wrong, and what to do. Everything else
is a defect of ours and keeps its traceback.
"""

import functools
import sys
from collections.abc import Callable

INTERRUPTED = 130  # the shell's exit status for a program ended by Ctrl-C


class UserError(Exception):
    """Something the user can mend; `str(error)` is the whole sentence."""


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a script's `main`: a `UserError` becomes one line on stderr and exit status 2.

    Ctrl-C ends quietly with status 130; other exceptions keep their traceback.
    """

    @functools.wraps(main)
    def run(*args: object, **kwargs: object) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)

    return run
