"""The one error type that a user sees as a sentence.

Everything a user can cause (a wrong folder, a half-written file, a model from elsewhere) raises
`UserError` with ONE sentence that names the thing, what is wrong, and what to do. Everything else
is a defect of ours and keeps its traceback.
"""

import functools
import sys
from collections.abc import Callable

from dino_core import distributed

WRONG = 2  # the exit status after a user's mistake, as argparse has it
INTERRUPTED = 130  # the shell's exit status for a program ended by Ctrl-C


class UserError(Exception):
    """Something the user can mend; `str(error)` is the whole sentence."""


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a script's `main`: a `UserError` becomes one line on stderr and exit status 2.

    Ctrl-C ends quietly with status 130; other exceptions keep their traceback. Of the processes
    that torchrun started one says the line; after a restart none does, nor tries again.
    """

    @functools.wraps(main)
    def run(*args: object, **kwargs: object) -> None:
        if known := distributed.left_word():
            distributed.leave_word(known)
            sys.exit(WRONG)
        try:
            main(*args, **kwargs)
        except UserError as error:
            distributed.let_first_speak()
            print(f"error: {error}", file=sys.stderr)
            distributed.leave_word(str(error))
            sys.exit(WRONG)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except SystemExit as end:
            if end.code == WRONG:  # the command line is wrong, and its parser has said so
                distributed.let_first_speak()
                distributed.leave_word("the command line is not understood: see above")
            raise

    return run
