"""The page that lists the converters agrees with what they are."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from medseg_se.data_prep.main import CONVERTERS, main

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
SHOWN = [shlex.split(line) for line in PAGE.read_text().splitlines() if line.startswith("medseg-prep ")]


def test_every_converter_has_a_section_and_an_example():
    assert re.findall(r"^### (\S+)$", PAGE.read_text(), re.MULTILINE) == list(CONVERTERS)
    assert {command[1] for command in SHOWN} == set(CONVERTERS)


@pytest.mark.parametrize("name", CONVERTERS)
def test_the_options_that_are_shown_exist(name):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([name, "--help"])
    section = PAGE.read_text().split(f"### {name}\n")[1].split("\n### ")[0]
    options = set(re.findall(r"--[a-z0-9_]+", section))
    assert {option for option in options if option not in out.getvalue()} == set()
