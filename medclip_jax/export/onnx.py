"""Exported models as ONNX, by PyTorch's own exporter from the exported PyTorch model."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

VOLUMES, TEXTS = "embed_volumes.onnx", "embed_texts.onnx"
POINTS, GAUSSIANS = ["vectors"], ["mean", "log_variance"]
"""Names of what the files return."""


def write_onnx(
    torch_model: Any, folder: str | os.PathLike, shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> list[Path]:
    """Write `embed_volumes.onnx` and, for a model with text, `embed_texts.onnx`, weights inside.

    `volumes` are int16 HU (B, D, H, W), prepared (of a system that reads frames `frames` int16 (B, T, H, W),
    their series `view` int32 (B, T) and `frame_valid` int8 (B, T)); `tokens` int64 ids (B, text_length).
    Both files return `vectors` (B, E) float32, L2-normalized; of Gaussians `mean` and `log_variance`, each
    (B, E) float32. B is free.

    Args:
        torch_model: `MedclipModel` of the exported folder, see `export.parity.load_torch`.
        folder: receives the files.
        shapes: of what it reads, see `export.inputs.input_shapes`.

    Returns:
        Their paths.

    Raises:
        ImportError: the extra `onnx` is not installed.
    """
    import torch

    class Embed(torch.nn.Module):
        """One embedding function, of one array or several."""

        def __init__(self, argument: str):
            super().__init__()
            self.model = torch_model
            self.argument = argument

        def forward(self, *samples: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
            given = self.model.packed(*samples) if self.argument == "volumes" else samples[0]
            embedding = getattr(self.model(**{self.argument: given}), self.argument)
            return tuple(embedding) if torch_model.gaussian else embedding.mean

    config, returned = torch_model.config, GAUSSIANS if torch_model.gaussian else POINTS
    examples = {
        "volumes" if name == "volume" else name: torch.from_numpy(np.ones((2, *one.shape), one.dtype))
        for name, one in shapes.items()
    }
    parts = [(VOLUMES, "volumes", examples)]
    if torch_model.has_text:
        tokens = torch.ones((2, config.text_length), dtype=torch.int64)
        parts.append((TEXTS, "texts", {"tokens": tokens}))
    written = []
    batch = torch.export.Dim("batch")
    for file, argument, examples in parts:
        with _quiet():
            program = torch.onnx.export(
                Embed(argument).eval(),
                tuple(examples.values()),
                dynamo=True,
                dynamic_shapes={"samples": tuple({0: batch} for _ in examples)},
                input_names=list(examples),
                output_names=returned,
            )
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with paths of this machine
            for value in node.outputs:
                if value.name in returned and not value.is_graph_output():
                    value.name = f"{value.name}_inside"  # the exporter calls what it met first so, too
        program.save(Path(folder) / file)
        written.append(Path(folder) / file)
    return written


@contextlib.contextmanager
def _quiet():
    """Without the exporter's own report, which it prints."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
