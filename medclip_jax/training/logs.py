"""Where metrics go: a JSON line, TensorBoard, Weights & Biases, the progress bar."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from medclip_jax.training.workdir import Workdir


class Logs:
    """Writes metrics by step.

    Args:
        workdir: of the run.
        config: the whole config.
        start: steps done before.
        steps: of the whole run.
        writing: False in all processes but the first: then nothing is written anywhere.
    """

    def __init__(self, workdir: Workdir, config: Any, *, start: int, steps: int, writing: bool = True):
        self._writing = writing
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            disable=not (config.log.progress and writing),
            dynamic_ncols=True,
        )
        self._lines = self._board = self._wandb = None
        if not writing:
            return
        self._lines = workdir.metrics_file.open("a")
        if config.log.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir.path / "tensorboard"), purge_step=start + 1)
        if config.log.wandb:
            try:
                import wandb
            except ImportError:
                raise ImportError(
                    "config.log.wandb is set but wandb is not installed: pip install 'medclip-jax[wandb]', "
                    "or set it to ''"
                ) from None
            self._wandb = wandb.init(
                project=config.log.wandb,
                name=workdir.path.name,
                id=workdir.path.name,
                resume="allow",
                dir=str(workdir.path),
                config=config.to_dict(),
            )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write numbers that belong to `step` (steps completed)."""
        if not self._writing:
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        # JSON has no NaN: such a number becomes null.
        line = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        self._lines.write(json.dumps({"step": step, **line}) + "\n")
        self._lines.flush()
        if self._board:
            for name, number in numbers.items():
                self._board.add_scalar(name, number, step)
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def advance(self, **shown: str) -> None:
        """One step further on the bar."""
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self._writing:
            self._bar.write(message)

    def close(self) -> None:
        """Flush and close everything."""
        self._bar.close()
        if self._lines:
            self._lines.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()
