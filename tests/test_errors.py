"""What a user sees when something goes wrong: one sentence, or nothing after Ctrl-C."""

import pytest

from dino_core.errors import INTERRUPTED, UserError, command


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
