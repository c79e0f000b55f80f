import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medseg_se.cli import commands
from medseg_se.cli.main import COMMANDS, TRAINING, main
from medseg_se.errors import UsageError
from medseg_se.version import __version__

HEAVY = ("torch", "numpy", "monai", "pytorch_lightning", "nibabel", "rich", "yaml")


def python(*arguments, stdout=subprocess.PIPE, **options):
    """Run Python in a process of its own, with its usual buffering whatever the environment says."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
        timeout=120,
        **options,
    )


def imported_after(arguments):
    """Return the names of all modules that a command line imports, in a process of its own."""
    code = f"import sys; from medseg_se.cli.main import main; code = main({arguments}); print(*sys.modules); sys.exit(code)"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    return {module.split(".")[0] for module in done.stdout.splitlines()[-1].split()}


def complaint(capsys):
    """Return what was printed to stderr, which must be one line and all there is."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("medseg-se: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.fixture
def failing(monkeypatch):
    """Return a function that makes `medseg-se configs` raise what it is given."""

    def make(error):
        def configs(name: str | None = None) -> int:
            """Fail."""
            raise error

        monkeypatch.setattr(commands, "configs", configs)

    return make


# ------------------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(capsys, arguments):
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for name, text in {**TRAINING, **COMMANDS}.items():
        assert any(line.split() == [name, *text.split()] for line in printed.splitlines()), name


@pytest.mark.parametrize("arguments", [["--version"], ["-V"]])
def test_the_version_is_printed(capsys, arguments):
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"medseg-se {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_explains_every_argument(capsys, name):
    function = getattr(commands, name)
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: medseg-se {name} ")
    words = " ".join(printed.split())
    for parameter in inspect.signature(function).parameters.values():
        assert (f"--{parameter.name}" if parameter.kind is parameter.KEYWORD_ONLY else f" {parameter.name} ") in words
        explained = inspect.getdoc(function).split(f"{parameter.name}: ")[1].split("\n")[0]
        assert explained.rstrip(".") in words


def test_help_imports_no_large_library():
    assert not imported_after(["--help"]) & {*HEAVY, "jsonargparse"}


@pytest.mark.parametrize("name", ["predict", "evaluate", "check"])
def test_help_of_a_command_imports_no_torch(name):
    assert not imported_after([name, "--help"]) & {"torch", "monai", "pytorch_lightning", "nibabel"}


def test_it_runs_as_a_module(tmp_path):
    done = python("-m", "medseg_se", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"medseg-se {__version__}\n", "")


# --------------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predit"], "Unknown command 'predit'. Did you mean 'predict'? Valid names: check, compare, configs, "),
        (["xyz"], "Unknown command 'xyz'. Valid names: "),
        (["predict", "m.ckpt", "scan.nii", "--ouput", "x"], "Unknown key 'ouput'. Did you mean '--output'?"),
        (["predict", "m.ckpt", "scan.nii", "--dryrun"], "Unknown key 'dryrun'. Did you mean '--dry_run'?"),
        (["predict", "m.ckpt", "scan.nii"], "arguments are required: output"),
        (["predict", "m.ckpt"], "arguments are required: inputs"),
        (["check"], "arguments are required: data"),
        (["predict", "m.ckpt", "scan.nii", "--output", "x", "--overlap", "half"], "Expected 'overlap' to be of type float"),
        (["predict", "m.ckpt", "scan.nii", "--output", "x", "--cases", "test"], "but got test"),
        (["predict", "m.ckpt", "scan.nii", "--output", "x", "--overwrite=3"], "overwrite"),
        (["check", "data", "--workers", "two"], "'workers'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in complaint(capsys)


def test_an_error_of_several_lines_becomes_one(capsys, failing):
    failing(UsageError("The first\nand the second."))
    assert main(["configs"]) == 2
    assert complaint(capsys) == "medseg-se: error: The first and the second.\n"


def test_a_file_that_cannot_be_read_or_written_is_named(capsys, failing):
    failing(PermissionError(13, "Permission denied", "/data/private"))
    assert main(["configs"]) == 2
    assert complaint(capsys) == "medseg-se: error: Cannot read or write /data/private: Permission denied.\n"


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), OSError(5, "Input/output error")])
def test_a_bug_keeps_its_traceback(failing, error):
    failing(error)
    with pytest.raises(type(error), match=str(error.args[-1])):
        main(["configs"])


# ----------------------------------------------------------------------------------------------------- ends before the end


def test_ctrl_c_ends_with_130(capsys, failing):
    failing(KeyboardInterrupt())
    assert main(["configs"]) == 130
    assert capsys.readouterr().err == (
        "medseg-se: interrupted; what was finished is kept, and the same command goes on from there\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["configs"], ["check", "--help"]])
@pytest.mark.parametrize("buffering", [[], ["-u"]])
def test_a_reader_that_leaves_early_is_no_error(arguments, buffering):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = python(*buffering, "-m", "medseg_se", *arguments, stdout=pipe)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("buffering", [[], ["-u"]])
def test_a_full_disk_behind_the_output_is_named(buffering):
    with open("/dev/full", "wb") as full:
        done = python(*buffering, "-m", "medseg_se", "--help", stdout=full)
    assert done.returncode == 2
    assert done.stderr == (
        "medseg-se: error: Cannot write the output: the disk is full; free some space and run the same command again.\n"
    )
