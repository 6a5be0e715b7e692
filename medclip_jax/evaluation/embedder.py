"""The embedding functions of an objective over host arrays: compiled once, batched, over all devices."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int32, Int64

from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.similarity import Embeddings, Gaussians, joined
from medclip_jax.evaluation.volume_features import VolumeFeatures, as_embeddings, hash_of
from medclip_jax.fields import Layout
from medclip_jax.losses.probabilistic import inclusion
from medclip_jax.objectives.base import DataSpec, Embedding, Inputs, Objective
from medclip_jax.progress import track

_NO_VOLUMES = "there are no volumes to embed: check the split's name and its size"

VolumeInputs = Mapping[str, np.ndarray]
"""The batch fields that an objective embeds, of one volume or of a batch."""


class Tokenizer(Protocol):
    """What the evaluators need of `medclip_jax.reports.tokenizer.Tokenizer`."""

    def __call__(self, texts: Sequence[str], length: int) -> Int32[np.ndarray, "B L"]:
        """Token ids, padded or truncated to the length."""


class Embedder:
    """The embedding functions of an objective, compiled once, over host arrays of any length.

    Parameters are an argument of the compiled functions, and are taken from the objective anew at every
    call: vectors are those of its present parameters. One embedder serves all evaluations of a run, see
    `update`. Every batch has one shape (the last is filled up); if the parameters live on a mesh, batches
    are split over all its devices. Where the mesh spans several processes, all of them call every method
    alike; each reads and embeds its share of every batch, and all get all vectors.

    Args:
        objective: the model.
        spec: that it was built for.
        config: `config.data` of its training: how its inputs are made, and how long a text is.
        tokenizer: turns texts into ids; None for an objective without text.
        batch_size: volumes or texts for each call; rounded up to a multiple of the mesh's devices.
        progress: whether to draw a bar.
        between: called after every batch; what it raises ends the work.
        readers: threads that read and decode volumes.
        objective_config: `config.objective`, from which random weights are drawn to compare with; None where
            it is not known.
    """

    def __init__(
        self,
        objective: Objective,
        spec: DataSpec,
        config: Any,
        tokenizer: Tokenizer | None = None,
        *,
        batch_size: int,
        progress: bool = True,
        between: Callable[[], None] = lambda: None,
        readers: int = 2,
        objective_config: Any = None,
    ):
        self.objective: Objective | None = objective
        self.graph, state = nnx.split(objective)
        self._leaves = jax.tree.leaves(state)
        self.pooling = objective.pooling()
        self.volume_inputs = objective.volume_inputs
        self.has_text = objective.has_text
        self.layout = Layout(objective.volume_inputs, spec, config)
        self.tokenizer = tokenizer
        self.text_length = int(config.text_length)
        self.progress = progress
        self.between = between
        self.readers = readers
        self.objective_config = objective_config
        self.sharding = _batch_sharding(state)
        devices = self.sharding.mesh.size if self.sharding is not None else 1
        self.batch_size = -(-batch_size // devices) * devices
        self.embeds_organs = objective.embeds_organs
        self.has_volume_tower = "volume" in objective.volume_inputs and objective.volume_tower() is not None
        self.selects_patches, self.fills_words = objective.selects_patches, objective.fills_words
        self.predicts_organs, self.reconstructs = objective.predicts_organs, objective.reconstructs
        self.matches_views, self.segments = objective.matches_views, objective.segments
        self.predicts = objective.predicts
        self.exclusive, self.outcome = objective.exclusive, objective.outcome
        self._functions: dict[Hashable, Callable[..., Any]] = {}
        self._known: dict[str, Embeddings] = {}
        self._hash = ""

    def inputs(self, record: Mapping[str, Any], index: int) -> VolumeInputs:
        """What the objective embeds of a record.

        Args:
            record: with the arrays of `layout.reads`.
            index: of it in its split.
        """
        sample = self.layout.sample(record, index)
        return {name: sample[name] for name in self.volume_inputs}

    def lacks(self, need: str) -> str:
        """Why the model cannot embed something, and what to do; "" where it can.

        Args:
            need: "text", "organs", "patches", "words", "organ shares", "reconstruction", "views", "label
                maps", "predictions", "volume tower", "asap" (of a volume tower), or "pooled", which every
                model can.
        """
        if need == "text" and self.has_text:
            missing = "there is no tokenizer: prepare the shards with one, or evaluate without texts"
            return "" if self.tokenizer is not None else missing
        able, reason = {
            "text": (
                False,
                "the model has no text tower (a masked autoencoder has none): evaluate a contrastive one",
            ),
            "organs": (
                self.embeds_organs,
                "the model embeds no organs: evaluate one that does (hipro_ct)",
            ),
            "patches": (
                self.selects_patches,
                "the model selects no patches for sentences: evaluate one that does (asap)",
            ),
            "words": (self.fills_words, "the model fills in no words: evaluate one that does (asap)"),
            "organ shares": (
                self.predicts_organs,
                "the model tells no organs: evaluate one that does (asap)",
            ),
            "reconstruction": (
                self.reconstructs,
                "the model fills in no patches: evaluate a masked autoencoder",
            ),
            "views": (
                self.matches_views,
                "the model assigns no crops to volumes: evaluate one that does (t3d with head 'prototype')",
            ),
            "label maps": (
                self.segments,
                "the model tells no classes of voxels: evaluate one that does (segment)",
            ),
            "volume tower": (self.has_volume_tower, "the model shows no tower that reads volumes of HU"),
            "asap": (
                self.has_volume_tower,
                "the model shows no tower that reads volumes of HU: set features='pooled'",
            ),
            "predictions": (
                bool(self.predicts),
                "the model predicts nothing by itself: evaluate one that was trained to (supervised)",
            ),
            "pooled": (True, ""),
        }[need]
        return "" if able else reason

    def update(self, objective: Objective | None) -> None:
        """Embed by another objective from now on; what is compiled is kept.

        Args:
            objective: built alike, such as the model after more training. None lets go of the parameters
                that are held, for as long as nothing is embedded.
        """
        self.objective, self._leaves, self._known, self._hash = objective, [], {}, ""

    def _parameters(self) -> nnx.State:
        """The objective's present ones. Vectors of texts that others gave are forgotten."""
        state = nnx.split(self.objective)[1]
        leaves = jax.tree.leaves(state)  # arrays never change, but variables get others
        if len(leaves) != len(self._leaves) or any(map(operator.is_not, leaves, self._leaves)):
            self._leaves, self._known, self._hash = leaves, {}, ""
        return state

    def volumes(
        self, count: int, read: Callable[[int], VolumeInputs], *, label: str = "embed volumes"
    ) -> Float[np.ndarray, "count E"]:
        """Embed volumes that are read one by one, while the device works on those before.

        Args:
            count: number of volumes.
            read: index to the fields of `Objective.volume_inputs`, such as `volume` (D, H, W) int16 HU.
            label: of the progress bar.

        Returns:
            (count, E) float32, or as many Gaussians where the objective gives variances.

        Raises:
            NotEvaluable: there are no volumes, or the objective embeds none.
        """
        return joined([as_embeddings(part) for part in self.features(count, read, label=label)])

    def features(
        self,
        count: int,
        read: Callable[[int], VolumeInputs],
        kinds: Sequence[str] = (),
        *,
        label: str = "embed volumes",
    ) -> Iterator[dict[str, Float[np.ndarray, "B width"]]]:
        """What `volumes` gives, and what probes read, batch by batch.

        Args:
            count: number of volumes.
            read: index to the fields of `Objective.volume_inputs`.
            kinds: of `volume_features.KINDS`: what is wanted beside the embedding.
            label: of the progress bar.

        Yields:
            "mean", "log_variance" where the objective gives variances, and each of `kinds`.

        Raises:
            NotEvaluable: there are no volumes.
        """
        if count == 0:
            raise NotEvaluable(_NO_VOLUMES)
        function = VolumeFeatures(tuple(kinds))
        for found in self.each(function, count, lambda index: (dict(read(index)),), label=label):
            yield {name: np.asarray(part) for name, part in found.items()}

    def predictions(
        self, count: int, read: Callable[[int], VolumeInputs], *, label: str = "predict"
    ) -> Float[np.ndarray, "count P"]:
        """What `Objective.predict` tells of volumes that are read one by one, in the order of `predicts`.

        Arguments as of `volumes`.

        Raises:
            NotEvaluable: there are no volumes, or the model predicts nothing.
        """
        if reason := self.lacks("predictions"):
            raise NotEvaluable(reason)
        parts = self.features(count, read, ("predictions",), label=label)
        return np.concatenate([part["predictions"] for part in parts])

    def weights_hash(self) -> str:
        """A hash of the objective's present arrays: names, types and values.

        Raises:
            ValueError: they lie on several processes.
        """
        if jax.process_count() > 1:
            raise ValueError("weights that lie on several processes have no hash: evaluate on one process")
        self._parameters()
        if not self._hash:
            self._hash = hash_of(nnx.split(self.objective)[1])
        return self._hash

    def organ_inclusion(
        self,
        count: int,
        read: Callable[[int], tuple[VolumeInputs, np.ndarray]],
        *,
        label: str = "embed organs",
    ) -> tuple[Float[np.ndarray, "count O"], Bool[np.ndarray, "count O"]]:
        """How far the Gaussian of each organ lies inside that of its full volume.

        Args:
            count: number of volumes.
            read: index to the fields of `Objective.volume_inputs` and (O, d, h, w) uint8 occupancy.
            label: of the progress bar.

        Returns:
            `losses.probabilistic.inclusion` of organ in volume, summed over the dimensions, and whether the
            organ shows in the volume at all; where it does not, the number means nothing.

        Raises:
            NotEvaluable: there are no volumes, or the objective has no Gaussians of organs.
        """
        if count == 0:
            raise NotEvaluable(_NO_VOLUMES)
        if reason := self.lacks("organs"):
            raise NotEvaluable(reason)

        def arguments(index: int) -> tuple[VolumeInputs, np.ndarray]:
            inputs, organs = read(index)
            return dict(inputs), organs

        found = self.each(_organ_inclusion, count, arguments, label=label)
        scores, present = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return scores, present

    def stream(self, batches: Iterable[VolumeInputs]) -> Iterator[Embeddings]:
        """Embed batches as they come; the next one is requested while the device works on the one before.

        Args:
            batches: the fields of `Objective.volume_inputs`, `batch_size` rows of each; of several processes,
                each gives its `own_rows`.

        Yields:
            For each batch (batch_size, E) float32, or as many Gaussians.
        """
        function = partial(self._compiled(VolumeFeatures()), self._parameters())
        return map(as_embeddings, self._ahead(function, ((dict(batch),) for batch in batches)))

    def each(
        self,
        function: Callable[..., Any],
        count: int,
        read: Callable[[int], tuple[Any, ...]],
        *,
        label: str,
        unit: str = "volume",
    ) -> Iterator[Any]:
        """Call a function of the model on volumes that are read one by one, a batch at a time.

        Args:
            function: of the objective and of what `read` gives, stacked; to arrays with the batch on their
                first axis. It is compiled once for all functions that equal it.
            count: number of volumes.
            read: index to arguments; arrays, or mappings of arrays.
            label: of the progress bar.
            unit: what is read one by one, where that is a part of a volume.

        Yields:
            What the function returned of each batch, on the host, without the rows that only fill it up.
        """
        own, compiled = self.own_rows(), partial(self._compiled(function), self._parameters())
        with (
            ThreadPoolExecutor(self.readers) as pool,
            track(total=count, label=label, unit=unit, show=self.progress) as bar,
        ):
            # Rows beyond the end repeat the last volume, up to the one shape that is compiled.
            batches = _batches(
                count,
                self.batch_size,
                lambda start: [pool.submit(read, min(start + int(row), count - 1)) for row in own],
            )
            stacked = (
                jax.tree.map(lambda *parts: np.stack(parts), *(row.result() for row in rows))
                for rows in batches
            )
            for found in self._ahead(compiled, stacked):
                rows = min(self.batch_size, count - bar.n)
                yield jax.tree.map(lambda part, rows=rows: part[:rows], found)
                bar.update(rows)
                self.between()

    def _ahead(self, function: Callable[..., Any], batches: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Results on the host; the next batch is requested while the device works on the one before."""
        pending: deque[Any] = deque()
        for batch in batches:
            pending.append(self._call(function, *batch))
            if len(pending) > 1:
                yield jax.device_get(pending.popleft())
        yield from map(jax.device_get, pending)

    def own_rows(self) -> Int64[np.ndarray, " rows"]:
        """Rows of a batch that this process reads and embeds: all of them where it is the only one."""
        if self.sharding is None:
            return np.arange(self.batch_size)
        places = self.sharding.addressable_devices_indices_map((self.batch_size,)).values()
        return np.unique(np.concatenate([np.arange(self.batch_size)[place] for place in places]))

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts, each distinct one once: equal texts have bit-equal vectors.

        Args:
            texts: any number of texts.

        Returns:
            (n, E) float32, or as many Gaussians.

        Raises:
            NotEvaluable: the objective has no text tower, or there is no tokenizer.
        """
        if reason := self.lacks("text"):
            raise NotEvaluable(reason)
        function = partial(self._compiled(_embed_texts), self._parameters())
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        show = self.progress and len(new) > 64
        with track(total=len(new), label="embed texts", unit="text", show=show) as bar:
            for start in range(0, len(new), self.batch_size):
                batch = new[start : start + self.batch_size]
                tokens = np.asarray(self.tokenizer(batch, self.text_length), np.int32)
                vectors = self._call(function, _fill(tokens, self.batch_size)[self.own_rows()])
                self._known.update(zip(batch, _kept(jax.device_get(vectors)), strict=False))
                bar.update(len(batch))
                self.between()
        if not texts:
            return np.zeros((0, 0), np.float32)
        return joined([self._known[text][None] for text in texts])

    def logit_scale(self) -> float:
        """The model's multiplier of similarities; 1 where the objective has none."""
        return float(jax.device_get(self._compiled(_scale)(self._parameters())))

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if function not in self._functions:
            self._functions[function] = self._compile(function)
        return self._functions[function]

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(state: nnx.State, *batch: Any) -> Any:
            return function(nnx.merge(self.graph, state), *batch)

        if self.sharding is None:
            return jax.jit(call)
        mesh = self.sharding.mesh

        def call_on_mesh(state: nnx.State, *batch: Any) -> Any:
            # Models pin activations to the mesh in force (`medclip_jax.sharding`).
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return call(state, *batch)

        # Whole on every device, so that every process can read all of it.
        return jax.jit(call_on_mesh, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def _call(self, function: Callable[..., Any], *batch: Any) -> Any:
        # Explicit transfer: the training loop forbids implicit ones.
        if self.sharding is None:
            return function(*jax.device_put(batch))

        def whole(rows: np.ndarray) -> jax.Array:
            shape = self.batch_size, *rows.shape[1:]
            return jax.make_array_from_process_local_data(self.sharding, rows, shape)

        return function(*jax.tree.map(whole, batch))


def _embed_texts(objective: Objective, tokens: jax.Array) -> Embedding:
    return objective.embed_texts(tokens)


def _scale(objective: Objective) -> jax.Array:
    return objective.similarity_scale()


def _organ_inclusion(objective: Objective, inputs: Inputs, organs: jax.Array) -> tuple[jax.Array, jax.Array]:
    whole, parts = objective.embed_volumes(inputs), objective.embed_organs(inputs, organs)
    around = whole.mean[:, None], whole.log_variance[:, None]
    return inclusion(parts.mean, parts.log_variance, *around, reduce="joint"), parts.present


def _kept(embedding: Embedding) -> Embeddings:
    if embedding.log_variance is None:
        return np.asarray(embedding.mean)
    return Gaussians(np.asarray(embedding.mean), np.asarray(embedding.log_variance))


def _batch_sharding(state: nnx.State) -> NamedSharding | None:
    """Split of the leading axis over the mesh that the parameters live on, None off a mesh."""
    for leaf in jax.tree.leaves(state):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
            return NamedSharding(sharding.mesh, PartitionSpec(tuple(sharding.mesh.axis_names)))
    return None


def _batches(count: int, size: int, submit: Callable[[int], list[Any]]) -> Iterator[list[Any]]:
    """Futures of each batch, the next one submitted before this one is handed out.

    Args:
        count: of rows over all batches.
        size: of a batch.
        submit: first row of a batch to its futures.
    """
    ahead: deque[list[Any]] = deque()
    for start in range(0, count, size):
        ahead.append(submit(start))
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


def _fill(batch: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last entry up to the one shape that is compiled."""
    missing = size - len(batch)
    return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
