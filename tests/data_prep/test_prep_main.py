"""`medseg-prep`: help without heavy imports, one-line errors, and a converter run through the front door."""

import importlib
import subprocess
import sys

import pytest
from medseg_se.data_prep.main import CONVERTERS, main

from medseg_se.data.datalist import read_datalist


def test_overview_names_every_converter_without_heavy_imports():
    program = (
        "import sys; from medseg_se.data_prep.main import main; code = main(['--help']); "
        "print(sorted({'numpy', 'torch', 'jsonargparse', 'nibabel'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    for name in CONVERTERS:
        described = [line.split(maxsplit=1) for line in lines if line.startswith(f"  {name}")]
        assert len(described) == 1
        assert len(described[0][1]) > 10


@pytest.mark.parametrize("name", sorted(CONVERTERS))
def test_every_converter_explains_itself(name, capsys):
    module = importlib.import_module(f"medseg_se.data_prep.{CONVERTERS[name]}")
    assert callable(getattr(module, "find", None) or getattr(module, CONVERTERS[name]))
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: medseg-prep {name} ")
    assert "output" in printed


def test_an_unknown_converter_gets_the_nearest_name(capsys):
    assert main(["fantom", "somewhere"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("medseg-prep: error: Unknown converter 'fantom'. Did you mean 'phantom'?")
    assert printed.err.count("\n") == 1


def test_no_converter_at_all_is_an_error(capsys):
    assert main([]) == 2
    assert "phantom" in capsys.readouterr().err


def test_an_unknown_option_is_refused_with_the_nearest(tmp_path, capsys):
    assert main(["phantom", str(tmp_path / "out"), "--casse", "3"]) == 2
    assert capsys.readouterr().err == "medseg-prep: error: Unknown key 'casse'. Did you mean '--cases'?\n"
    assert not (tmp_path / "out").exists()


def test_phantoms_through_the_front_door(tmp_path, capsys):
    command = ["phantom", str(tmp_path / "out"), "--kind", "torso", "--cases", "2", "--test", "1", "--resolution", "16"]
    assert main(command) == 0
    assert "made 2 torso phantoms, 0 were there already" in capsys.readouterr().out
    datalist = read_datalist(tmp_path / "out")
    assert (len(datalist.training), len(datalist.test)) == (1, 1)
    assert main(command) == 0
    assert "made 0 torso phantoms, 2 were there already" in capsys.readouterr().out
    assert main([*command, "--seed", "5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("medseg-prep: error: ")
    assert "seed=0" in error
    assert error.count("\n") == 1


def test_more_held_out_cases_than_cases_are_refused(tmp_path, capsys):
    assert main(["phantom", str(tmp_path / "out"), "--cases", "2", "--test", "3"]) == 2
    assert "Expected `test` between 0 and the number of cases, 2, but got 3." in capsys.readouterr().err
