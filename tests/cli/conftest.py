"""What tests of the command line share: running it in this process, and expecting it to refuse."""

import pytest

from medseg_se.cli.main import main


@pytest.fixture
def call(capfd):
    """Return a function that runs the command line and returns its exit code, output and messages."""

    def run(*arguments):
        code = main(list(arguments))
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def refused(call):
    """Return a function that expects exit code 2 and a complaint in one line, the last, and returns it."""

    def run(*arguments):
        code, _, messages = call(*arguments)
        assert code == 2
        line = messages.strip().splitlines()[-1]
        assert line.startswith("medseg-se: error: ")
        assert messages.count("medseg-se: error: ") == 1
        assert "Traceback" not in messages
        return line.removeprefix("medseg-se: error: ")

    return run
