import subprocess
import sys

import pytest

import medseg_se


@pytest.mark.parametrize("name", medseg_se.__all__)
def test_every_public_name_is_there(name):
    found = getattr(medseg_se, name)
    assert found is not None
    assert getattr(found, "__name__", name) == name


def test_a_star_import_gives_exactly_the_public_names():
    names = {}
    exec("from medseg_se import *", names)
    assert set(names) - {"__builtins__"} == set(medseg_se.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'medseg_se' has no attribute 'Modle'"):
        medseg_se.Modle  # noqa: B018
    assert not hasattr(medseg_se, "build_netwrok")


def test_importing_the_package_imports_no_large_library():
    code = "import sys, medseg_se; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    imported = {module.split(".")[0] for module in done.stdout.split()}
    assert not imported & {"torch", "numpy", "monai", "pytorch_lightning", "nibabel", "rich", "jsonargparse", "yaml"}
