"""`medclip evaluate --config`: a file says what is evaluated, and options have the last word."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from medclip_jax.evaluation.config import evaluation_config
from medclip_jax.evaluation.settings import check_evaluators
from medclip_jax.sections import Section, set_field, shown_file
from medclip_jax.training.config import find_config
from medclip_jax.training.config_module import config_module


def load_evaluation(path: str) -> Section:
    """Read a config file of an evaluation.

    Args:
        path: Python file that defines `get_config()`, starting from `evaluation_config()`. Where there is no
            file "configs/...", the one of that name that came with the package is taken.

    Raises:
        FileNotFoundError: there is no such file; the message names the nearest.
        ValueError: no `get_config` in it, a config of another kind, a key that there is not (the message
            names the nearest), or a value that its key cannot have.
    """
    file = find_config(path)
    shown = shown_file(file)
    with config_module(file) as module:
        if not hasattr(module, "get_config"):
            raise ValueError(f"{path} must define get_config(); start from evaluation_config()")
        given = module.get_config()
    if not isinstance(given, Mapping | ConfigDict):
        raise ValueError(
            f"{shown}: get_config() must return a config that starts from "
            f"medclip_jax.evaluation.config.evaluation_config(), not {given!r}"
        )
    if "objective" in given:
        raise ValueError(
            f"{shown} is a config of `medclip train`: give its workdir with --workdir, and as --config a "
            "file such as configs/evaluation/classification.py"
        )
    config = evaluation_config()
    for name, value in given.items():
        set_field(config, name, value, shown)
    try:
        check_evaluators(config.evaluators, where="config.evaluators.")
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from None
    return config


def fill_options(args: argparse.Namespace) -> dict[str, Any]:
    """Give the options that the command line left out the values of `--config`, or their defaults.

    Args:
        args: of the command; options that were left out are None.

    Returns:
        Evaluator name to the settings that the file gives.
    """
    config = load_evaluation(args.config) if args.config else evaluation_config()
    for name, value in config.items():
        told = value != "" and name not in ("evaluators", "protocols")
        if told and getattr(args, name) is None:
            setattr(args, name, value)
    if args.protocol is None and config.protocols:
        args.protocol = ",".join(config.protocols)
    return config.evaluators.to_dict()
