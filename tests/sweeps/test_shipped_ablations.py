"""The sweeps that configs tell in their headers: every unit resolves and builds, from shapes alone."""

import argparse
import ast
import re
import shlex

import pytest

from medclip_jax.cli import check_data, sweep
from medclip_jax.planning.shapes import build, terms_of
from medclip_jax.sweeps.units import expand
from medclip_jax.training.config import shipped_configs

FOLDER = shipped_configs()


def told(path):
    """The sweeps in a header, each as a list of arguments."""
    lines = ast.get_docstring(ast.parse(path.read_text())).replace("\\\n", " ").splitlines()
    variables, found = {}, []
    for line in lines:
        line = re.sub(r"^\s*Command:", "", line).strip()
        if set_here := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[set_here[1]] = set_here[2]
        elif line.startswith("medclip sweep"):
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            found.append(shlex.split(line)[2:])
    return found


SWEEPS = [
    pytest.param(arguments, id=f"{path.parent.name}/{path.stem}-{number}")
    for path in sorted(FOLDER.rglob("*.py"))
    if path.stem in ("ablation", "deterministic")
    for number, arguments in enumerate(told(path))
]


def parsed(arguments):
    parser = argparse.ArgumentParser()
    sweep.add_arguments(parser)
    return parser.parse_args(arguments)


def units_of(arguments, folder):
    args = parsed(arguments)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    assert len(seeds) == 3
    return expand(args.config, folder, args.grid, settings=args.set, seeds=seeds)


RUNS = [case for case in SWEEPS if "--config" in case.values[0]]


@pytest.mark.parametrize("arguments", RUNS)
def test_every_unit_of_a_sweep_that_a_header_tells_is_resolved(arguments, tmp_path):
    units = units_of(arguments, tmp_path)
    assert len(units) % 3 == 0
    assert len({unit.name for unit in units}) == len(units)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", RUNS)
def test_every_unit_is_built(arguments, tmp_path):
    parser = argparse.ArgumentParser()
    check_data.add_arguments(parser)
    for unit in units_of(arguments, tmp_path)[::3]:  # seeds change no shape
        unit.config.data.shards = ""  # what they would say, the config expects
        data = check_data.assume(unit.config, parser.parse_args([]))
        assert terms_of(build(unit.config, data.spec, samples=1000))


def test_headers_tell_sweeps():
    assert len(RUNS) >= 15
