"""A trained model in use: scans and sentences in, vectors, probabilities and rankings out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int16
from ml_collections import ConfigDict

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import encode_prompts
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.similarity import Embeddings, Gaussians, means, similarity
from medclip_jax.evaluation.sliding import OVERLAP, slide
from medclip_jax.evaluation.zero_shot import pair_scores
from medclip_jax.fields import Layout
from medclip_jax.inference.arguments import (
    Center,
    Pair,
    as_centers,
    as_findings,
    as_list,
    as_prompts,
    as_studies,
    as_text,
    as_texts,
    is_single,
)
from medclip_jax.inference.maps import ScanMaps
from medclip_jax.inference.preparation import CENTER_ASSUMED, Preparation, Prepared, Scan
from medclip_jax.inference.segmentation import Segmentation
from medclip_jax.inference.studies import Study, StudyPreparation
from medclip_jax.objectives.base import DataSpec, Objective
from medclip_jax.pool import available_cores
from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.reports.prompts import prompts_of
from medclip_jax.shards.grid import frame_kind
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.volumes.images import is_array, to_array

if TYPE_CHECKING:
    from medclip_jax.reports.tokenizer import Tokenizer

_READERS = 8
"""Threads that decode, at most: each holds a whole scan."""


class Hit(NamedTuple):
    """One volume found for a text: its place in the list that was given, and how similar it is.

    The similarity is a cosine; of Gaussians ``1 - CSD / 2``, see `medclip_jax.evaluation.similarity`.
    """

    index: int
    similarity: float


class Model(ScanMaps):
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
        percentiles: what windows an MR scan's intensities; None keeps HU and the scanner's units.
        batch_size: volumes for each call of the model, until the first call.
        progress: whether to draw bars.
        source: where it was loaded from, as `repr` shows it.
        series: what became of the series of frames of its training, for a model that reads studies of them.
        definitions: the findings that it knows by name, with their prompts.
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
        percentiles: tuple[float, float] | None = None,
        batch_size: int = 4,
        progress: bool = True,
        source: str = "",
        series: tuple[SeriesSettings, ...] = (),
        definitions: Findings = BUILT_IN,
    ):
        self.objective = objective
        self.spec = spec
        self.tokenizer = tokenizer
        self.config = config
        self.crop = crop
        self.modality = modality
        self.percentiles = percentiles
        self.batch_size = batch_size
        self.progress = progress
        self.source = source
        self.series = series
        self.definitions = definitions

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.objective, nnx.Param)))
        lines = [
            f"medclip_jax.Model({self.config['objective']['name']!r}, {count / 1e6:.3g} million parameters)",
            self._describe_studies() if self.reads_studies else self._describe_scans(),
        ]
        for tower, what in self.objective.towers().items():
            lines.append(f"  {tower}: {what}")
        if self.objective.has_text:
            lines.append(f"  texts:     up to {self.config['data']['text_length']} tokens")
            lines.append(f"  findings:  {', '.join(self.spec.findings) or 'none'}")
        if self.source:
            lines.append(f"  from:      {self.source}")
        return "\n".join(lines)

    def _describe_scans(self) -> str:
        size = " x ".join(map(str, self.spec.shape))
        grid = "(depth, height, width), to which the complete scan is resized"
        if None not in self.spec.spacing:
            spacing = " x ".join(f"{step:g}" for step in self.spec.spacing)
            grid = f"of {spacing} mm (depth, height, width), crop around: {self.crop}"
        return f"  scans:     {self.modality}, {size} voxels {grid}"

    def _describe_studies(self) -> str:
        names = ", ".join(series.name for series in self.preparation.wanted)
        return f"  studies:   {self.config['data']['frames']} frames of {names}: {frame_kind(self.series)}"

    @property
    def reads_studies(self) -> bool:
        """Whether it embeds studies of several series of frames, and not volumes."""
        return bool(self.series) and "volume" not in self.objective.volume_inputs

    @cached_property
    def embedder(self) -> Embedder:
        """The compiled embedding functions; the evaluators take it, too."""
        return Embedder(
            self.objective,
            self.spec,
            ConfigDict(self.config["data"]),
            self.tokenizer,
            batch_size=self.batch_size,
            progress=self.progress,
            readers=min(available_cores(), _READERS),
            objective_config=ConfigDict(self.config["objective"]),
        )

    @property
    def preparation(self) -> Preparation | StudyPreparation:
        """What scans, or studies, go through; it can be handed to other processes."""
        if self.reads_studies:
            fields = self.objective.volume_inputs
            layout = Layout(fields, self.spec, ConfigDict(self.config["data"]))
            return StudyPreparation(self.series, layout, fields)
        return Preparation(self.spec.shape, self.spec.spacing, self.crop, self.modality, self.percentiles)

    @property
    def volume_kind(self) -> dict[str, Any]:
        """What the volumes of its training had in common, as `shards.grid.volume_kind` has it."""
        return {
            "shape": self.spec.shape,
            "spacing": self.spec.spacing,
            "crop": self.crop,
            "modality": self.modality,
            "percentiles": self.percentiles,
            "frames": frame_kind(self.series),
        }

    @property
    def logit_scale(self) -> float:
        """The learned multiplier of cosines; 1 where the objective has none."""
        return float(self.objective.similarity_scale())

    def prepare(self, scan: Scan, *, center: Center = None) -> Int16[np.ndarray, "D H W"]:
        """Bring a scan to the form the model was trained on, as `medclip prepare` does.

        Args:
            scan: a NIfTI, NRRD or MHA file or a DICOM folder by its path; an image of nibabel or SimpleITK; a
                tuple (array, affine), the affine (4, 4) from array index to RAS mm as nibabel has it; a
                `Volume`; or an array that is prepared. Arrays are NumPy's, JAX's or PyTorch's, of HU.
            center: world RAS mm of the crop's middle; None for the scan's middle.

        Returns:
            (D, H, W) int16 HU.

        Raises:
            medclip_jax.volumes.VolumeRejected: the scan cannot be used, for example as its values are no HU;
                the message names a file and says what to do.
            ValueError: an array of another shape, an affine that is none, a `Volume` whose spacing
                contradicts its affine, or a center that is not three numbers.
            TypeError: nothing that stands for a scan.
        """
        return self._prepared(scan, center).voxels

    def prepare_study(self, study: Study) -> dict[str, np.ndarray]:
        """Bring a study of several series to the form a model of frames was trained on.

        Args:
            study: the path of its folder, with files or DICOM folders named as the series are, or with a
                table `series.csv`, see `inference.studies.series_in`; or a mapping of series to paths.

        Returns:
            The batch fields that the model embeds, such as `frames` (T, H, W), `view` and `frame_valid` (T,).

        Raises:
            medclip_jax.volumes.VolumeRejected: the study cannot be used; the message says what to do.
            ValueError: the model reads scans; or several files for one series.
            TypeError: nothing that stands for a study.
        """
        if not self.reads_studies:
            raise ValueError("the model reads scans, and no studies of frames: call prepare")
        return dict(self.preparation(study).inputs)

    def _prepared(self, scan: Scan, center: Center) -> Prepared:
        if self.reads_studies:
            raise NotEvaluable(
                "the model reads studies of several series, and no volumes: call prepare_study, "
                "embed_volumes or zero_shot with study folders, or mappings of series to paths"
            )
        prepared = self.preparation(scan, center)
        if CENTER_ASSUMED in prepared.notes:
            warnings.warn(
                f"the model was trained on crops around {self.crop!r}, and this scan is cropped around its "
                "middle: give center=(x, y, z), in RAS mm, of that organ",
                stacklevel=3,
            )
        return prepared

    def embed_volumes(
        self, volumes: Scan | Sequence[Scan], *, center: Center | Sequence[Center] = None
    ) -> Embeddings:
        """Vectors of scans, read and decoded by threads ahead of the device.

        A scan's vector does not depend on the other scans nor on the batch size, beyond 1e-6 in float32. For
        thousands of scans, and for archives with damaged files, use `medclip embed`.

        Args:
            volumes: one scan or a list of several, see `prepare`; or an (N, D, H, W) array of prepared ones.
                Of a model of frames, one study or several, see `prepare_study`.
            center: as in `prepare`, one for every scan, or a list with one (or None) for each.

        Returns:
            (N, E) float32, L2-normalized; N is 1 for a single scan. Of a model with variances, N `Gaussians`,
            with `mean` (N, E), `log_variance` (N, E), and the uncertainty `trace` (N,).

        Raises:
            medclip_jax.volumes.VolumeRejected, ValueError, TypeError: as `prepare`; also without any scan,
                and for another number of centers than of scans.
        """
        return self.embedder.volumes(*self._read(volumes, center))

    def _read(
        self, volumes: Scan | Sequence[Scan], center: Center | Sequence[Center]
    ) -> tuple[int, Callable[[int], dict[str, np.ndarray]]]:
        """How many scans or studies there are, and a function from the place of one to its batch fields."""
        if self.reads_studies:
            if center is not None:
                raise ValueError("pictures of a study are cut around their middle: give no center")
            studies = as_studies(volumes)
            return len(studies), lambda index: self.prepare_study(studies[index])
        scans = as_list(volumes)
        centers = as_centers(center, len(scans))
        return len(scans), lambda index: {"volume": self.prepare(scans[index], center=centers[index])}

    def predict(
        self, volumes: Scan | Sequence[Scan], *, center: Center | Sequence[Center] = None
    ) -> dict[str, float] | list[dict[str, float]]:
        """What a model that was trained with labels tells of scans: probabilities, or risks.

        Args:
            volumes: one scan or several, as in `embed_volumes`.
            center: as in `embed_volumes`.

        Returns:
            Name, one of `objective.predicts`, to number for a single scan; a list of such dicts for several.

        Raises:
            medclip_jax.evaluation.results.NotEvaluable: the model was not trained to tell anything.
            medclip_jax.volumes.VolumeRejected, ValueError, TypeError: as `embed_volumes`.
        """
        if reason := self.embedder.lacks("predictions"):
            raise NotEvaluable(reason)
        told = self.embedder.predictions(*self._read(volumes, center))
        found = [dict(zip(self.embedder.predicts, row.tolist(), strict=True)) for row in told]
        return found[0] if is_single(volumes) else found

    def embed_texts(self, texts: str | Sequence[str]) -> Embeddings:
        """Vectors of texts.

        Args:
            texts: one text or several.

        Returns:
            (N, E) float32, L2-normalized, or N `Gaussians`; N is 1 for a single text.

        Raises:
            medclip_jax.evaluation.results.NotEvaluable: the objective has no text tower.
            ValueError: no text, or an empty one.
            TypeError: something else than texts.
        """
        return self.embedder.texts(as_texts(texts))

    def zero_shot(
        self,
        volumes: Scan | Sequence[Scan],
        findings: Sequence[str | Pair],
        *,
        template: str = "there_is",
        center: Center | Sequence[Center] = None,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Probability of each finding, from its prompt pair.

        The softmax over the similarities (cosines, of points) to "There is X." and "There is no X.", times
        the learned logit scale. Of a finding with several prompts, their vectors are averaged.
        It ranks scans; it is calibrated only as well as the training makes it.

        Args:
            volumes: one scan or several, see `prepare`.
            findings: names, as `medclip_jax.reports.names.finding_name` understands them: the library's,
                those of the findings file that the model was trained with, and of that given to `load`. Or
                pairs of your own sentences: (positive, negative), each one or a list of several.
            template: wording for names that have no prompts of their own, a key of
                `medclip_jax.reports.prompts.TEMPLATES`.
            center: as in `embed_volumes`.

        Returns:
            finding as it was given, or the positive sentence of a pair, to probability for a single scan; a
            list of such dicts for several.

        Raises:
            medclip_jax.reports.names.UnknownFinding: the message lists the known ones.
            ValueError: no finding, a pair that is not one, or two with the same positive sentence.
            medclip_jax.volumes.VolumeRejected: a file cannot be used; the message names it.
        """
        wanted = as_findings(findings)
        pairs = {name: self.embed_pair(finding, template) for name, finding in wanted.items()}
        found = self.scores(self.embed_volumes(volumes, center=center), pairs)
        return found[0] if is_single(volumes) else found

    def embed_pair(self, finding: str | Pair, template: str = "there_is") -> tuple[Embeddings, Embeddings]:
        """A single vector of the positive prompts, and one of the negative.

        Args:
            finding: its name, or (positive, negative) sentences, one or a list of several each.
            template: wording, for a name that has no prompts of its own.

        Raises:
            KeyError: an unknown finding or template.
            ValueError: a pair that is not one.
        """
        if isinstance(finding, str):
            prompts = prompts_of(finding, template, definitions=self.definitions)
        else:
            prompts = as_prompts(finding)
        return encode_prompts(self.embed_texts, prompts)

    def scores(
        self, vectors: Embeddings, pairs: Mapping[str, tuple[Embeddings, Embeddings]]
    ) -> list[dict[str, float]]:
        """Probability of each finding for volumes that are embedded.

        Args:
            vectors: from `embed_volumes`; of Gaussians the means are enough.
            pairs: finding to the vectors of its pair, from `embed_pair`.

        Returns:
            N dicts, finding to probability.
        """
        columns = {
            name: pair_scores(vectors, *pair, score="probability", scale=self.logit_scale)
            for name, pair in pairs.items()
        }
        return [{name: float(column[i]) for name, column in columns.items()} for i in range(len(vectors))]

    def retrieve(
        self,
        text: str,
        volumes: Sequence[Scan] | Embeddings,
        *,
        count: int = 10,
        center: Center | Sequence[Center] = None,
    ) -> list[Hit]:
        """The scans nearest to a text, best first; of equal ones the earlier.

        Args:
            text: report, sentence or prompt; a single one.
            volumes: scans to search, see `prepare`, or their vectors or Gaussians from `embed_volumes`.
            count: how many to return.
            center: as in `embed_volumes`; for scans.

        Returns:
            At most `count` hits.

        Raises:
            TypeError: several texts.
            ValueError: a count below 1, vectors of another length than the model's, or as `embed_volumes`.
        """
        query = self.embed_texts(as_text(text))
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"count={count!r}: how many hits, 1 or more")
        if isinstance(volumes, Gaussians):
            vectors = volumes
        elif is_array(volumes) and np.ndim(volumes) == 2:
            vectors = to_array(volumes)
        else:
            vectors = self.embed_volumes(volumes, center=center)
        widths = means(vectors).shape[1], means(query).shape[1]
        if widths[0] != widths[1]:
            raise ValueError(f"vectors of {widths[0]} numbers, the model's have {widths[1]}: embed with it")
        found = similarity(vectors, query)[:, 0]
        order = np.argsort(-found, kind="stable")[:count]
        return [Hit(int(index), float(found[index])) for index in order]

    def segment(self, volume: Scan, *, center: Center = None, overlap: float = OVERLAP) -> Segmentation:
        """The class of each voxel of a scan.

        A window of the model's crop slides over the prepared volume; where windows overlap, their logits are
        averaged, the middle of a window counting most.

        Args:
            volume: a scan, see `prepare`.
            center: as in `prepare`.
            overlap: of neighboring windows along each axis, as a share of them; less is faster.

        Returns:
            The labels on the grid of the prepared volume; `save` writes them on the scan's own.

        Raises:
            medclip_jax.evaluation.results.NotEvaluable: the objective does not segment.
            TypeError: several scans.
            ValueError: an overlap below 0, or of 1 or more.
        """
        if reason := self.embedder.lacks("label maps"):
            raise NotEvaluable(reason)
        if not is_single(volume):
            raise TypeError("segment takes one scan, see `prepare`: call it for each of several")
        return self.segment_prepared(self._prepared(volume, center), overlap=overlap)

    def segment_prepared(self, prepared: Prepared, *, overlap: float = OVERLAP) -> Segmentation:
        """`segment` of a scan that `preparation` made ready.

        Args:
            prepared: the scan.
            overlap: as in `segment`.
        """
        (labels,) = slide(self.embedder, (prepared,), lambda index: prepared.voxels, overlap=overlap)
        classes = self.objective.segmented_classes()
        return Segmentation(labels, classes, prepared.grid, prepared.source)
