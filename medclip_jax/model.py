"""A trained model in use: scans and sentences in, vectors, probabilities and rankings out."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int16

from medclip_jax.evaluation.embeddings import Embedder
from medclip_jax.evaluation.heatmaps import HeatMap, heat_map
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.zero_shot import pair_scores
from medclip_jax.objectives.base import DataSpec, Objective
from medclip_jax.volumes import Volume, read_volume

if TYPE_CHECKING:
    from medclip_jax.reports.tokenizer import Tokenizer
    from medclip_jax.shards.read import PreparedInfo

Scan = str | os.PathLike | Volume | np.ndarray
"""A file or DICOM folder, a volume that was read, or a prepared (D, H, W) int16 array."""


class Hit(NamedTuple):
    """One volume found for a text: its place in the list that was given, and the cosine."""

    index: int
    cosine: float


class Model:
    """A trained objective with its tokenizer and the preparation its scans need.

    Build one by `load`. Every method is deterministic. Scans go through the steps of `medclip prepare`:
    canonical orientation, HU, the same spacing, the same shape, the same center.

    Args:
        objective: with trained weights.
        spec: shape, spacing and vocabulary it was built for.
        tokenizer: None for an objective without text.
        config: of the run.
        crop: what prepared volumes are centered on, see `shards.settings.PrepareSettings.crop`.
        modality: "CT" or "MR".
        batch_size: volumes for each call of the model.
        progress: whether to draw bars.
    """

    def __init__(
        self,
        objective: Objective,
        spec: DataSpec,
        tokenizer: Tokenizer | None,
        config: Mapping[str, Any],
        *,
        crop: str = "center",
        modality: str = "CT",
        batch_size: int = 4,
        progress: bool = True,
    ):
        self.objective = objective
        self.spec = spec
        self.tokenizer = tokenizer
        self.config = config
        self.crop = crop
        self.modality = modality
        self.batch_size = batch_size
        self.progress = progress

    @cached_property
    def embedder(self) -> Embedder:
        """The compiled embedding functions, which the evaluators share."""
        return Embedder(
            self.objective,
            self.tokenizer,
            text_length=int(self.config["data"]["text_length"]),
            batch_size=self.batch_size,
            progress=self.progress,
        )

    @property
    def logit_scale(self) -> float:
        """The learned multiplier of cosines; 1 where the objective has none."""
        scale = getattr(self.objective, "logit_scale", None)
        return float(scale()) if callable(scale) else 1.0

    def prepare(self, scan: Scan, *, center: Sequence[float] | None = None) -> Int16[np.ndarray, "D H W"]:
        """Bring a scan to the form the model was trained on, as `medclip prepare` does.

        Args:
            scan: a NIfTI, NRRD or MHA file, a DICOM folder, a `Volume`, or an array that is prepared.
            center: world RAS mm of the crop's middle; None for the scan's middle.

        Returns:
            (D, H, W) int16 HU.

        Raises:
            medclip_jax.volumes.VolumeRejected: the file cannot be used; the message says what to do.
            ValueError: an array of another shape or type.
        """
        from medclip_jax.shards.scan import crop_and_resample

        if isinstance(scan, np.ndarray):
            if scan.shape != self.spec.shape or scan.dtype != np.int16:
                raise ValueError(
                    f"an array must be a prepared volume, int16 {self.spec.shape}, not {scan.dtype} "
                    f"{scan.shape}: give the file's path, or a Volume from medclip_jax.volumes.read_volume"
                )
            return scan
        if self.crop != "center" and center is None:
            warnings.warn(
                f"the model was trained on crops around {self.crop!r}, and this scan is cropped around its "
                "middle: give center=(x, y, z), in RAS mm, of that organ",
                stacklevel=2,
            )
        volume = scan if isinstance(scan, Volume) else read_volume(scan, modality=self.modality)
        at = None if center is None else np.asarray(center, np.float64)
        return crop_and_resample(volume, self.spec.shape, self.spec.spacing, at)[0].voxels

    def embed_volumes(
        self, volumes: Scan | Sequence[Scan], *, center: Sequence[float] | None = None
    ) -> Float32[np.ndarray, "N E"]:
        """Vectors of scans.

        Args:
            volumes: one scan or several, see `prepare`; or an (N, D, H, W) int16 array of prepared ones.
            center: as in `prepare`, for every scan.

        Returns:
            (N, E) float32, L2-normalised; N is 1 for a single scan.

        Raises:
            medclip_jax.volumes.VolumeRejected: a file cannot be used.
            ValueError: an array of another shape or type.
        """
        scans = _as_list(volumes)
        return self.embedder.volumes(len(scans), lambda index: self.prepare(scans[index], center=center))

    def embed_texts(self, texts: str | Sequence[str]) -> Float32[np.ndarray, "N E"]:
        """Vectors of texts.

        Args:
            texts: one text or several.

        Returns:
            (N, E) float32, L2-normalised; N is 1 for a single text.

        Raises:
            medclip_jax.evaluation.results.NotEvaluable: the objective has no text tower.
        """
        return self.embedder.texts([texts] if isinstance(texts, str) else list(texts))

    def zero_shot(
        self, volumes: Scan | Sequence[Scan], findings: Sequence[str], *, template: str = "there_is"
    ) -> Any:
        """Probability of each finding, from its prompt pair.

        The softmax over the cosines to "There is X." and "There is no X.", times the learned logit scale.
        It ranks scans; it is calibrated only as well as the training makes it.

        Args:
            volumes: one scan or several, see `prepare`.
            findings: names in `medclip_jax.reports.findings.FINDINGS`.
            template: wording, a key of `medclip_jax.reports.prompts.TEMPLATES`.

        Returns:
            finding to probability for a single scan; a list of such dicts for several.

        Raises:
            KeyError: an unknown finding; the message lists the known ones.
            medclip_jax.volumes.VolumeRejected: a file cannot be used.
        """
        pairs = {name: self.embed_pair(name, template) for name in findings}
        found = self.scores(self.embed_volumes(volumes), pairs)
        return found[0] if _is_single(volumes) else found

    def embed_pair(self, finding: str, template: str = "there_is") -> Float32[np.ndarray, "2 E"]:
        """Vectors of a finding's positive and negative prompt.

        Args:
            finding: its name.
            template: wording.
        """
        from medclip_jax.reports.prompts import pair

        return self.embed_texts(pair(finding, template))

    def scores(
        self, vectors: Float[np.ndarray, "N E"], pairs: Mapping[str, Float[np.ndarray, "2 E"]]
    ) -> list[dict[str, float]]:
        """Probability of each finding for volumes that are embedded.

        Args:
            vectors: (N, E) from `embed_volumes`.
            pairs: finding to the vectors of its pair, from `embed_pair`.

        Returns:
            N dicts, finding to probability.
        """
        columns = {
            name: pair_scores(vectors, *pair, score="probability", scale=self.logit_scale)
            for name, pair in pairs.items()
        }
        return [{name: float(column[i]) for name, column in columns.items()} for i in range(len(vectors))]

    def retrieve(self, text: str, volumes: Sequence[Scan], *, count: int = 10) -> list[Hit]:
        """The scans nearest to a text, best first; of equal ones the earlier.

        Args:
            text: report, sentence or prompt.
            volumes: scans to search, see `prepare`, or their (N, E) float vectors from `embed_volumes`.
            count: how many to return.

        Returns:
            At most `count` hits.
        """
        is_vectors = isinstance(volumes, np.ndarray) and volumes.ndim == 2
        vectors = volumes if is_vectors else self.embed_volumes(volumes)
        cosines = vectors.astype(np.float64) @ self.embed_texts(text)[0].astype(np.float64)
        order = np.argsort(-cosines, kind="stable")[:count]
        return [Hit(int(index), float(cosines[index])) for index in order]

    def explain(
        self,
        volume: Scan,
        text: str,
        against: str | None = None,
        *,
        center: Sequence[float] | None = None,
        first_layer: int | None = None,
    ) -> HeatMap:
        """Where in a scan its agreement with a text comes from.

        Args:
            volume: a scan, see `prepare`.
            text: a sentence, or the name of a finding, which stands for its prompt "There is X.".
            against: the opposite sentence; then the difference of the cosines is explained.
            center: as in `prepare`.
            first_layer: first block to follow, see `evaluation.heatmaps.heat_map`.

        Returns:
            The map, on the grid of the prepared volume.

        Raises:
            medclip_jax.evaluation.results.NotEvaluable: the objective has no text tower.
        """
        from medclip_jax.reports.prompts import pair
        from medclip_jax.reports.vocabulary import FINDINGS

        sentence = pair(text)[0] if text in FINDINGS else text
        positive = self.embed_texts(sentence)[0]
        negative = None if against is None else self.embed_texts(against)[0]
        prepared = self.prepare(volume, center=center)
        return heat_map(self.objective, prepared, positive, negative, first_layer=first_layer)


def load(
    workdir: str | os.PathLike,
    *,
    step: int | None = None,
    shards: str | os.PathLike | None = None,
    batch_size: int = 4,
    progress: bool = True,
) -> Model:
    """Load a trained model from its workdir.

    The weights are the newest checkpoint's, their moving average where one was kept. What scans must look
    like, the tokenizer and the shape of a text encoder from elsewhere are read from the run's own copies
    (`prepare.json`, `tokenizer/`, `text_encoder/`), else from where the run took them.

    Args:
        workdir: of `medclip train`.
        step: which checkpoint; None for the newest.
        shards: prepared folder to take the preparation from instead; and the tokenizer, where the run kept
            none.
        batch_size: volumes for each call of the model.
        progress: whether to draw bars.

    Returns:
        The model.

    Raises:
        FileNotFoundError: no run or no checkpoint there, or neither shards nor tokenizer can be found.
        ValueError: the checkpoint does not fit the config beside it.
    """
    from flax import nnx
    from ml_collections import ConfigDict

    from medclip_jax import objectives
    from medclip_jax.reports.tokenizer import load_tokenizer
    from medclip_jax.training.checkpoints import restore_params
    from medclip_jax.training.config import complete
    from medclip_jax.training.state import flatten, merge, split
    from medclip_jax.training.workdir import TEXT_ENCODER, TOKENIZER

    workdir = Path(workdir)
    file = workdir / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"no config.json in {workdir}: give the --workdir of a `medclip train` run, not its checkpoints"
        )
    config = ConfigDict(complete(json.loads(file.read_text())))
    info = _preparation(workdir, config, shards)
    # The run's own copies first: what they were copied from may have moved, or changed.
    kept = workdir / TOKENIZER
    folder = kept if kept.is_dir() else config.data.tokenizer or info.tokenizer
    tokenizer = load_tokenizer(folder) if folder else None
    if (workdir / TEXT_ENCODER).is_dir():
        config.objective.text.folder = str(workdir / TEXT_ENCODER)
    spec = DataSpec.of(info, tokenizer)
    params = restore_params(workdir, ema=True, step=step)
    graphdef, fresh, variables = split(objectives.create(config.objective, spec, rngs=nnx.Rngs(0)))
    expected, found = flatten(fresh), flatten(params)
    wrong = [n for n in expected if n not in found or found[n].shape != expected[n].shape]
    if wrong or len(found) != len(expected):
        where = wrong[0] if wrong else next(n for n in found if n not in expected)
        raise ValueError(
            f"the checkpoint in {workdir} does not fit its config.json (parameter {where!r}): the shards or "
            "the tokenizer are not those it was trained with; pass shards=..., or restore the original "
            "config.json"
        )
    return Model(
        merge(graphdef, params, variables),
        spec,
        tokenizer,
        config.to_dict(),
        crop=str(info.settings.get("crop", "center")),
        modality=str(info.settings.get("modality", "CT")),
        batch_size=batch_size,
        progress=progress,
    )


def prepare_all(
    model: Model, scans: Sequence[Scan], *, center: Sequence[float] | None = None
) -> list[Int16[np.ndarray, "D H W"] | Exception]:
    """Prepare scans side by side, keeping the error of each one that cannot be used.

    Args:
        model: whose preparation to apply.
        scans: see `Model.prepare`.
        center: as there.

    Returns:
        For each scan the prepared volume, or the error.
    """

    def attempt(scan: Scan) -> Int16[np.ndarray, "D H W"] | Exception:
        try:
            return model.prepare(scan, center=center)
        # Any file must end as a line in a list, whatever its reader stumbles over.
        except Exception as error:
            return error

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(attempt, scans))


def _preparation(workdir: Path, config: Any, shards: str | os.PathLike | None) -> PreparedInfo:
    from medclip_jax.shards.read import SETTINGS_FILE, open_shards

    if shards is not None:
        return open_shards(shards)
    if (workdir / SETTINGS_FILE).is_file():
        return open_shards(workdir)
    if not config.data.shards or not Path(config.data.shards).is_dir():
        raise FileNotFoundError(
            f"the shards of this run, {config.data.shards!r}, are not there, and {workdir} holds no copy of "
            f"their {SETTINGS_FILE}: pass the prepared folder (shards=..., --shards), or copy its "
            f"{SETTINGS_FILE} and tokenizer/ into the workdir"
        )
    return open_shards(config.data.shards)


def _is_single(volumes: Any) -> bool:
    return isinstance(volumes, str | os.PathLike | Volume) or (
        isinstance(volumes, np.ndarray) and volumes.ndim == 3
    )


def _as_list(volumes: Any) -> list[Scan]:
    scans = [volumes] if _is_single(volumes) else list(volumes)
    if not scans:
        raise NotEvaluable("no volumes were given")
    return scans
