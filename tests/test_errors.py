"""What a user sees when something goes wrong: one sentence, or nothing after Ctrl-C."""

import os
import signal
import subprocess
import sys

import pytest

from dino_core.errors import (
    INTERRUPTED,
    UNREAD,
    UserError,
    at_least,
    command,
    quiet_while_importing,
)


def test_a_user_error_is_one_line_and_status_2(capsys):
    @command
    def main() -> None:
        raise UserError("photos: no images in it; give a folder with images")

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr() == (
        "",
        "error: photos: no images in it; give a folder with images\n",
    )


def test_ctrl_c_ends_quietly(capsys):
    @command
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err


def test_main_gets_its_ctrl_c_back_after_the_imports():
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        quiet_while_importing()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        seen = []
        command(lambda: seen.append(signal.getsignal(signal.SIGINT)))()
        assert seen == [signal.default_int_handler]
    finally:
        signal.signal(signal.SIGINT, before)


def test_who_ignores_ctrl_c_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        quiet_while_importing()
        command(lambda: None)()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_defect_of_ours_keeps_its_traceback():
    @command
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


PRINTS = """
from dino_core.errors import command

@command
def main():
    print("a figure")

main()
"""


def test_output_that_nobody_reads_ends_without_a_word(repository):
    """Also what is less than a buffer holds, which is written when all is done."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-c", PRINTS]
    done = subprocess.run(words, cwd=repository, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (UNREAD, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_output_that_has_no_room_is_a_sentence(repository):
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-c", PRINTS]
        done = subprocess.run(words, cwd=repository, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "error: what is printed cannot be written (No space left on device)\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_arguments_and_name_pass_through():
    seen = []

    @command
    def train(data: str, *, epochs: int) -> None:
        """Train."""
        seen.append((data, epochs))

    train("scenes", epochs=3)
    assert seen == [("scenes", 3)]
    assert (train.__name__, train.__doc__) == ("train", "Train.")


@pytest.mark.parametrize(("lowest", "value"), [(1, 0), (0, -1)])
def test_a_number_below_the_least_is_a_sentence_with_the_flag(lowest, value):
    at_least(lowest, batch_size=lowest, workers=None)
    with pytest.raises(UserError, match=rf"--batch-size {value}: must be {lowest} or more"):
        at_least(lowest, workers=5, batch_size=value)
