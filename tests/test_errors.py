"""What a user sees when something goes wrong: one sentence, or nothing after Ctrl-C."""

import signal

import pytest

from dino_core.errors import INTERRUPTED, UserError, at_least, command, quiet_while_importing


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
