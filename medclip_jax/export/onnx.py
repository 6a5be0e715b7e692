"""Exported models as ONNX, by PyTorch's own exporter from the exported PyTorch model."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any

VOLUMES, TEXTS = "embed_volumes.onnx", "embed_texts.onnx"
POINTS, GAUSSIANS = ["vectors"], ["mean", "log_variance"]
"""Names of what the files return."""


def write_onnx(torch_model: Any, folder: str | os.PathLike) -> list[Path]:
    """Write `embed_volumes.onnx` and, for a model with text, `embed_texts.onnx`, weights inside.

    `volumes` are int16 HU (B, D, H, W), prepared; `tokens` int64 ids (B, text_length). Both files return
    `vectors` (B, E) float32, L2-normalized; of Gaussians `mean` and `log_variance`, each (B, E) float32. B
    is free.

    Args:
        torch_model: `MedclipModel` of the exported folder, see `export.parity.load_torch`.
        folder: receives the files.

    Returns:
        Their paths.

    Raises:
        ImportError: the extra `onnx` is not installed.
    """
    import torch

    class Embed(torch.nn.Module):
        """One embedding function with its one argument."""

        def __init__(self, argument: str):
            super().__init__()
            self.model = torch_model
            self.argument = argument

        def forward(self, samples: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
            embedding = getattr(self.model(**{self.argument: samples}), self.argument)
            return tuple(embedding) if torch_model.gaussian else embedding.mean

    config, returned = torch_model.config, GAUSSIANS if torch_model.gaussian else POINTS
    parts = [(VOLUMES, "volumes", "volumes", torch.zeros((2, *config.data["shape"]), dtype=torch.int16))]
    if torch_model.has_text:
        tokens = torch.ones((2, config.text_length), dtype=torch.int64)
        parts.append((TEXTS, "texts", "tokens", tokens))
    written = []
    for file, argument, name, example in parts:
        with _quiet():
            program = torch.onnx.export(
                Embed(argument).eval(),
                (example,),
                dynamo=True,
                dynamic_shapes={"samples": {0: torch.export.Dim("batch")}},
                input_names=[name],
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
