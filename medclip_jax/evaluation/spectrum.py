"""How rich the tokens of a volume tower are, layer by layer, and what they tell apart.

A tower whose tokens have become alike (over-smoothed) or lie along a few directions (collapsed) says little
of a place, however its pooled vector scores. No text is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from medclip_jax.evaluation.degradation import OpenRecords
from medclip_jax.evaluation.embedder import Embedder, VolumeInputs
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.metrics import mean_of_defined
from medclip_jax.evaluation.results import NotEvaluable, Table, needs, number
from medclip_jax.evaluation.spacings import spacing_of_records
from medclip_jax.evaluation.spectrum_metrics import (
    Moments,
    effective_rank,
    first_share,
    mean_cosine,
    participation_ratio,
    singular_values,
)
from medclip_jax.evaluation.token_maps import LayerTokens, TokenMaps, map_tokens


@dataclass(frozen=True)
class LayerSpectrum:
    """Of one layer's tokens.

    Attributes:
        width: features of a token.
        tokens: of each volume that were taken.
        together: (min(n, width),) singular values of the tokens of all volumes, less their mean token.
        decay: (min(tokens, width),) singular values of one volume's tokens, less their mean, over the first;
            mean over the volumes.
        ranks: (volumes,) effective rank of each volume's tokens over min(tokens, width), from 0 to 1.
        cosines: (volumes,) mean cosine between the tokens of each volume.
    """

    width: int
    tokens: int
    together: Float[np.ndarray, " k"]
    decay: Float[np.ndarray, " m"]
    ranks: Float[np.ndarray, " volumes"]
    cosines: Float[np.ndarray, " volumes"]

    def metrics(self) -> dict[str, float]:
        """The numbers of this layer."""
        return {
            "effective_rank": effective_rank(self.together),
            "participation_ratio": participation_ratio(self.together),
            "first_share": first_share(self.together),
            "volume_rank": float(self.ranks.mean()),
            "token_cosine": mean_of_defined(self.cosines),
        }


@dataclass(frozen=True)
class SpectrumResult:
    """Singular values of every layer's tokens.

    Attributes:
        layers: name to spectrum, first to last.
        maps: of some of the volumes; None where none were wanted.
        conditions: n, tokens, seed, in words.
    """

    layers: Mapping[str, LayerSpectrum]
    maps: TokenMaps | None
    conditions: Mapping[str, str] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Keys ``effective_rank/<layer>``, ``volume_rank/<layer>``, ``token_cosine/<layer>``..."""
        found = {name: layer.metrics() for name, layer in self.layers.items()}
        keys = next(iter(found.values()), {})
        return {f"{key}/{name}": values[key] for key in keys for name, values in found.items()}

    def curves(self) -> dict[str, dict[str, Float[np.ndarray, " n"]]]:
        """Of each layer all that `LayerSpectrum` holds: singular values and those of each volume."""
        return {
            name: {key: getattr(layer, key) for key in ("together", "decay", "ranks", "cosines")}
            for name, layer in self.layers.items()
        }

    def table(self) -> Table:
        """One line for each layer."""
        rows = []
        for name, layer in self.layers.items():
            values = layer.metrics()
            rows.append(
                (
                    name,
                    str(layer.width),
                    number(values["effective_rank"], 1),
                    number(values["participation_ratio"], 1),
                    number(values["first_share"]),
                    f"{number(values['volume_rank'])} ± {number(float(layer.ranks.std()))}",
                    number(values["token_cosine"]),
                )
            )
        header = (
            "layer",
            "width",
            "effective rank",
            "participation ratio",
            "first share",
            "rank in a volume",
            "token cosine",
        )
        return Table("Token spectrum", header, tuple(rows), self.conditions)

    def __str__(self) -> str:
        return str(self.table())


@needs("volume tower")
def evaluate_spectrum(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    samples: int = 100,
    tokens: int = 256,
    pictures: int = 3,
    seed: int = 0,
    embedder: Embedder | None = None,
    open_records: OpenRecords | None = None,
) -> SpectrumResult:
    """Singular values of the patch tokens of every layer, and the last layer's tokens as colors.

    Args:
        data: the split.
        encode_texts: not used.
        samples: volumes, drawn from the split; 0 for all.
        tokens: of each volume in each layer, drawn once for all volumes; 0 for all. More of them take longer:
            each layer of each volume is decomposed on the host.
        pictures: volumes of which a map is drawn.
        seed: of both draws.
        embedder: of the model.
        open_records: opens the split's records.

    Returns:
        The result.

    Raises:
        NotEvaluable: the model or the volumes are not available.
        ValueError: tokens that are not finite.
    """
    if embedder is None or open_records is None:
        raise NotEvaluable("token spectra need the model and its volumes, not their vectors alone")
    records, _ = open_records(embedder.layout.reads)
    count = len(data.volumes)
    drawn = np.random.default_rng(seed).permutation(count)[: samples or count]
    chosen = np.sort(drawn)

    def read(place: int) -> tuple[VolumeInputs]:
        index = int(chosen[place])
        return (dict(embedder.inputs(records[index], index)),)

    parts = embedder.each(LayerTokens(tokens, seed), len(chosen), read, label="token spectra")
    layers = _spectra(parts)
    spacing_of = spacing_of_records(embedder.layout.spec, open_records)
    maps = None
    if shown := [int(index) for index in drawn[:pictures]]:
        inputs = [embedder.inputs(records[index], index) for index in shown]
        maps = map_tokens(embedder, inputs, [spacing_of(index) for index in shown])
    conditions = {
        "n": f"{len(chosen)} volumes of {len(np.unique(data.patients[chosen]))} patients, "
        f"split {data.name!r}",
        "tokens": "of each volume: "
        + ", ".join(dict.fromkeys(str(layer.tokens) for layer in layers.values()))
        + (f", drawn at random, seed {seed}" if tokens else ", all of them"),
        "effective rank": "exp of the entropy of the singular values, tokens of all volumes together, less "
        "their mean token; at most the width",
        "rank in a volume": "effective rank of one volume's tokens over the most it can be; mean ± standard "
        "deviation over volumes",
        "token cosine": "mean over pairs of tokens of a volume, and over volumes",
    }
    return SpectrumResult(layers, maps, conditions)


class _Growing:
    """A layer's spectrum while volumes come in."""

    def __init__(self, width: int):
        self.moments = Moments(width)
        self.decays: list[Float[np.ndarray, " m"]] = []
        self.ranks: list[float] = []
        self.cosines: list[float] = []

    def add(self, tokens: Float[np.ndarray, "N W"]) -> None:
        self.moments.add(tokens)
        singular = singular_values(tokens)
        self.decays.append(singular / max(singular[0], np.finfo(np.float64).tiny))
        self.ranks.append(effective_rank(singular) / len(singular))
        self.cosines.append(mean_cosine(tokens))

    def finished(self) -> LayerSpectrum:
        return LayerSpectrum(
            width=len(self.moments.mean),
            tokens=self.moments.count // len(self.ranks),
            together=self.moments.singular_values(),
            decay=np.mean(self.decays, axis=0),
            ranks=np.array(self.ranks),
            cosines=np.array(self.cosines),
        )


def _spectra(parts: Iterable[Mapping[str, Float[np.ndarray, "B N W"]]]) -> dict[str, LayerSpectrum]:
    """Of each layer, from its tokens batch by batch."""
    growing: dict[str, _Growing] = {}
    for part in parts:
        for key, batch in sorted(part.items()):
            name = key.partition(" ")[2]
            if not np.isfinite(batch).all():
                raise ValueError(f"tokens of layer {name!r} are not finite: the model's weights are damaged")
            layer = growing.setdefault(name, _Growing(batch.shape[-1]))
            for tokens in batch:
                layer.add(tokens)
    return {name: layer.finished() for name, layer in growing.items()}
