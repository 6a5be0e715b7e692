"""Where a model looks: maps of single scans, and the colors of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medclip_jax.evaluation.heatmaps import HeatMap, heat_map
from medclip_jax.evaluation.sentence_maps import SentenceMap, ground_sentences
from medclip_jax.evaluation.similarity import averaged
from medclip_jax.evaluation.token_maps import LAST, TokenMaps, map_tokens
from medclip_jax.inference.arguments import Center, as_centers, as_list, as_text, as_texts, is_single
from medclip_jax.inference.preparation import Prepared, Scan
from medclip_jax.reports.prompts import prompts_of

if TYPE_CHECKING:
    from medclip_jax.evaluation.embedder import Embedder
    from medclip_jax.evaluation.similarity import Embeddings
    from medclip_jax.objectives.base import DataSpec, Objective
    from medclip_jax.reports.definitions import Findings


class ScanMaps:
    """The part of `inference.model.Model` that shows scans."""

    if TYPE_CHECKING:
        objective: Objective
        spec: DataSpec
        definitions: Findings
        embedder: Embedder
        embed_texts: Callable[..., Embeddings]
        _prepared: Callable[[Scan, Center], Prepared]

    def explain(
        self,
        volume: Scan,
        text: str,
        against: str | None = None,
        *,
        center: Center = None,
        first_layer: int | None = None,
    ) -> HeatMap:
        """Where in a scan its agreement with a text comes from.

        Args:
            volume: a scan, see `prepare`.
            text: a sentence, or the name of a finding, which stands for its positive prompts.
            against: the opposite sentence; then the difference of the cosines is explained.
            center: as in `prepare`.
            first_layer: first block to follow, see `evaluation.heatmaps.heat_map`.

        Returns:
            The map, on the grid of the prepared volume; its `save` writes it on the scan's own.

        Raises:
            medclip_jax.evaluation.results.NotEvaluable: the objective has no text tower.
            TypeError: several scans or texts.
        """
        from medclip_jax.reports.names import is_finding

        text = as_text(text)
        if is_finding(text, definitions=self.definitions):
            sentences = prompts_of(text, definitions=self.definitions).positive
        else:
            sentences = (text,)
        positive = averaged(self.embed_texts(sentences))
        negative = None if against is None else self.embed_texts(as_text(against))[0]
        if not is_single(volume):
            raise TypeError("explain takes one scan, see `prepare`: call it for each of several")
        prepared = self._prepared(volume, center)
        found = heat_map(self.objective, prepared.voxels, positive, negative, first_layer=first_layer)
        return replace(found, grid=prepared.grid, source=prepared.source)

    def pca_map(
        self,
        volumes: Scan | Sequence[Scan],
        *,
        layer: str = LAST,
        center: Center | Sequence[Center] = None,
    ) -> TokenMaps:
        """What the volume tower tells apart: patch tokens along their first three components, as colors.

        Places of one color are alike to the tower, in all scans of a call; colors of two calls share no
        scale. `medclip_jax.pages.spectrum_figures.token_maps` draws them.

        Args:
            volumes: one scan or a list of several, see `prepare`.
            layer: of the tower, such as "block_6"; by default the last one.
            center: as in `embed_volumes`.

        Returns:
            The scans as prepared, and the colors of their tokens.

        Raises:
            medclip_jax.evaluation.results.NotEvaluable: the model shows no tower that reads volumes, or the
                layer's tokens lie on another grid than the last one's.
            ValueError: the tower has no such layer.
        """
        scans = as_list(volumes)
        centers = as_centers(center, len(scans))
        prepared = [self._prepared(scan, at) for scan, at in zip(scans, centers, strict=True)]
        usual = tuple(step or 1.0 for step in self.spec.spacing)
        spacings = [
            tuple(np.linalg.norm(one.grid.affine[:3, :3], axis=0).tolist()) if one.grid else usual
            for one in prepared
        ]
        return map_tokens(self.embedder, [one.inputs for one in prepared], spacings, layer=layer)

    def ground(
        self, volume: Scan, sentences: str | Sequence[str], *, center: Center = None
    ) -> list[SentenceMap]:
        """Where in a scan each sentence of a report finds what it is about.

        Args:
            volume: a scan, see `prepare`.
            sentences: of one report, which are read together; or its text, which is split into them.
            center: as in `prepare`.

        Returns:
            For each sentence its similarity to every patch and the patches that it selects, on the grid of
            the prepared volume; `save` writes the similarity on the scan's own.

        Raises:
            medclip_jax.evaluation.results.NotEvaluable: the objective selects no patches for sentences.
            TypeError: several scans, or something else than texts.
            ValueError: no sentence, an empty one, or more than the model reads at once.
        """
        from medclip_jax.reports.sentences import split_sentences

        given = split_sentences(sentences) if isinstance(sentences, str) else sentences
        texts = as_texts(given)
        if not is_single(volume):
            raise TypeError("ground takes one scan, see `prepare`: call it for each of several")
        prepared = self._prepared(volume, center)
        maps = ground_sentences(self.embedder, prepared.voxels, texts)
        return [replace(found, grid=prepared.grid, source=prepared.source) for found in maps]
