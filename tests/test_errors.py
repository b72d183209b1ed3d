"""Expected failures end in one line; bugs keep their traceback."""

import errno

import pytest

from stages import errors


def raising(error: BaseException) -> None:
    def main() -> None:
        raise error

    errors.run(main)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (errors.StageError("a.txt: two\n lines"), "error: a.txt: two lines"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a"),
            "a: No space left on device;",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied"),
            "cannot read or write: Permission",
        ),
        (MemoryError("Unable to allocate 9 GiB"), "not enough memory (Unable to allocate 9 GiB)"),
    ],
)
def test_one_line_and_status_1(
    error: BaseException, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        raising(error)
    printed = capsys.readouterr()
    assert stop.value.code == 1
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert line in printed.err
    assert printed.err.count("\n") == 1


def test_an_interrupt_is_one_line_and_the_status_that_shells_expect(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        raising(KeyboardInterrupt())
    assert stop.value.code == 130
    assert capsys.readouterr().err == "error: interrupted; run it again to complete\n"


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())
