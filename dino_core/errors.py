"""The one error type that a user sees as a sentence.

Everything a user can cause (a wrong folder, a half-written file, a model from elsewhere) raises
`UserError` with ONE sentence that names the thing, what is wrong, and what to do. Everything else
is a defect of ours and keeps its traceback.
"""

import functools
import os
import signal
import sys
import time
from collections.abc import Callable

from dino_core import distributed

WRONG = 2  # the exit status after a user's mistake, as argparse has it
INTERRUPTED = 130  # the shell's exit status for a program ended by Ctrl-C
UNREAD = 141  # and for one that nobody reads any more


def at_least(lowest: int, **settings: int | None) -> None:
    """Raise a `UserError` that names the first of the settings below `lowest`; None is not set."""
    for name, value in settings.items():
        if value is not None and value < lowest:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {value}: must be {lowest} or more")


class UserError(Exception):
    """Something the user can mend; `str(error)` is the whole sentence."""


def quiet_while_importing() -> None:
    """From here to the `main` of a `command`: Ctrl-C ends at once with status 130, without a word.

    Loading torch takes seconds, and nothing was begun yet that would have to be put in order. What
    was started with Ctrl-C ignored, in the background of a shell, goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_now)


def _end_now(_kind: int, _frame: object) -> None:
    os._exit(INTERRUPTED)


def _output_is_lost() -> bool:
    """Whether standard output takes no more; then nothing is tried again at the very end."""
    try:
        print(flush=True)  # what failed may have been thrown away: an empty line tells
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def end_if_known() -> None:
    """End at once in a process that torchrun started anew after a user's mistake: it would meet the
    same. Every `command` asks; a script can ask before it loads torch."""
    if known := distributed.left_word():
        if distributed.may_speak():  # in vain, but for the attempt after this one
            distributed.leave_word(known, time.time())
        sys.exit(WRONG)


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a script's `main`: a `UserError` becomes one line on stderr and exit status 2.

    Ctrl-C ends quietly with status 130, output that nobody reads with 141; other exceptions keep
    their traceback. Of the processes
    that torchrun started one says the line; after a restart none does, nor tries again.
    """

    @functools.wraps(main)
    def run(*args: object, **kwargs: object) -> None:
        end_if_known()
        if signal.getsignal(signal.SIGINT) is _end_now:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main(*args, **kwargs)
            sys.stdout.flush()
        except OSError as error:
            if not _output_is_lost():
                raise
            if isinstance(error, BrokenPipeError):  # as `| head` ends the reading
                sys.exit(UNREAD)
            reason = error.strerror or error
            print(f"error: what is printed cannot be written ({reason})", file=sys.stderr)
            sys.exit(WRONG)
        except UserError as error:
            met_at = time.time()
            if distributed.may_speak():
                print(f"error: {error}", file=sys.stderr, flush=True)
                distributed.leave_word(str(error), met_at)
            sys.exit(WRONG)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except SystemExit as end:
            if end.code == WRONG and distributed.may_speak():  # as the parser has, above
                distributed.leave_word("the command line is not understood: see above", time.time())
            raise

    return run
