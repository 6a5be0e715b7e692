"""Volumes by patches, reports by sentences: vectors, similarities, organs, hidden patches and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medclip_jax.export.torch.loading import MedclipConfig
from medclip_jax.export.torch.masked import MaskedModel
from medclip_jax.export.torch.model import Embedding, normalized
from medclip_jax.export.torch.text_decoder import TextDecoder
from medclip_jax.export.torch.text_model import TextModel


class Selected(NamedTuple):
    """Which patches of their volume the sentences of reports are about.

    `similarity` (B, S, N): cosines, patches in the order of the grid. `count` (B, S): how many patches a
    sentence is about, the most similar ones. `valid` (B, S): False where a report has no such sentence.
    """

    similarity: Tensor
    count: Tensor
    valid: Tensor


class AlignHead(nn.Module):
    """From a tower's features to those in which towers are compared: (..., seen) to (..., width)."""

    def __init__(self, seen: int, width: int):
        super().__init__()
        self.first = nn.Linear(seen, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.second = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Not normalized."""
        return self.second(self.norm(F.gelu(self.first(features))))


class OrganHead(nn.Module):
    """Logits of the share of a patch that each organ fills: (B, N, seen) to (B, N, organs)."""

    def __init__(self, seen: int, organs: int):
        super().__init__()
        self.first = nn.Linear(seen, organs)
        self.norm = nn.LayerNorm(organs, eps=1e-6)
        self.second = nn.Linear(organs, organs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Of tokens inside the decoder."""
        return self.second(F.relu(self.norm(self.first(tokens))))


class AsapModel(MaskedModel, TextModel):
    """Both towers, what compares patches with sentences, and the decoders that they were trained with.

    Wherever a method takes `reports`: the sentences of one report, a list of such lists, or a tuple of ids
    (B, L) and of the sentence (B, L) that each belongs to, -1 for none.

    Attributes:
        organ_names: what `predict_organs` tells, in its order.
        seen: how many patches of a volume training saw.
    """

    def __init__(self, config: MedclipConfig):
        super().__init__(config)
        objective, weights, align = config.objective, config.objective["weights"], nn.Identity
        width, text_width = self.vision.encoder.width, self.text.width
        if objective["align_heads"]:
            align = AlignHead
        self.patch_head, self.sentence_head = align(width, width), align(text_width, width)
        selection = objective["selection"]
        self.most_sentences, self.fixed = objective["most_sentences"], selection["fixed"]
        self.candidates = list(selection["candidates"])
        self.budget = None if self.fixed else nn.ModuleDict({"score": nn.Linear(width, 1)})
        self.seen = max(1, round(math.prod(self.vision.encoder.grid) * (1.0 - objective["mask_fraction"])))
        groups = objective["anatomy"]["groups"] or [[name] for name in config.data["organs"]]
        self.organ_names = ["+".join(group) for group in groups] if weights["anatomy"] else []
        self.organ_head = (
            OrganHead(objective["decoder"]["width"], len(groups)) if weights["anatomy"] else None
        )
        self.report_head = self.prior = self.text_decoder = None
        if weights["language"]:
            self.report_head = AlignHead(text_width, width)
            self.text_decoder = TextDecoder(objective, width)
            if objective["fusion"]["prior"]:
                self.prior = nn.ParameterDict({"weight": torch.zeros(())})
        self.post_init()

    def see(self, volumes: Tensor) -> Embedding:
        """Prepared HU (B, D, H, W) to points: means of the patches' vectors."""
        return normalized(Embedding(self.patch_vectors(volumes).mean(dim=1)))

    def read(self, tokens: Tensor) -> Embedding:
        """Ids (B, L) to points, each text taken as one sentence."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        words = (tokens != self.text.pad).sum(dim=1, keepdim=True) - 2
        inside = (places >= 1) & (places <= words)
        return normalized(Embedding(self.sentence_vectors(tokens, inside.long() - 1)[0][:, 0]))

    def patch_vectors(self, volumes: Tensor) -> Tensor:
        """Vectors (B, N, E) of the patches of prepared HU, not normalized. With gradients."""
        return self.patch_head(self.vision.encode(volumes).tokens)

    def sentence_vectors(self, tokens: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, S, E) of the sentences of reports, not normalized, and (B, S) which there are.

        `tokens` (B, L) are ids, `sentence` (B, L) is the sentence of each. With gradients.
        """
        states = self.sentence_head(self.text.states(tokens)[0]).float()
        numbers = torch.arange(self.most_sentences, device=tokens.device)
        belongs = (sentence[:, None] == numbers[:, None]).float()
        size = belongs.sum(dim=-1, keepdim=True)
        return belongs / size.clamp(min=1) @ states, size[..., 0] > 0

    def budgets(self, sentences: Tensor) -> Tensor:
        """How many of the patches seen in training sentences (B, S, E) are about: (B, S)."""
        if self.budget is None:
            return torch.full_like(sentences[..., 0], self.fixed)
        count = len(self.candidates)
        score = self.budget["score"](sentences.to(self.budget["score"].weight.dtype))[..., 0].float()
        place = (count * score.sigmoid()).long().clamp(max=count - 1)
        return torch.tensor(self.candidates, device=place.device)[place].float()

    @torch.no_grad()
    def embed_patches(self, volumes) -> Tensor:
        """Vectors of all patches in the space of texts, (B, N, E), of length 1, width fastest."""
        return normalized(Embedding(self.patch_vectors(self.prepared(volumes)))).mean

    @torch.no_grad()
    def select(self, volumes, reports) -> Selected:
        """Which patches the sentences of reports are about, one report a volume; see the class."""
        patches = self.embed_patches(volumes)
        sentences, valid = self.sentence_vectors(*self._report_ids(reports, len(patches)))
        similarity = normalized(Embedding(sentences)).mean @ patches.mT
        # A number of patches stands for as large a part of the volume as in training, where some were seen.
        count = self.budgets(sentences) * patches.shape[1] / self.seen
        count = count.round().clamp(1, patches.shape[1])
        return Selected(similarity, count.long(), valid)

    @torch.no_grad()
    def predict_organs(self, volumes) -> Tensor:
        """Share of each patch that each of `organ_names` fills, (B, N, O)."""
        return self.organ_logits(self.prepared(volumes)).sigmoid()

    def organ_logits(self, volumes: Tensor) -> Tensor:
        """The same of prepared HU before the sigmoid. With gradients."""
        if self.organ_head is None:
            raise ValueError("this model tells no organs: it was trained with weights.anatomy=0")
        encoded = self.vision.encode(volumes)
        everything = torch.arange(encoded.tokens.shape[1], device=encoded.tokens.device)
        places = everything.expand(len(encoded.tokens), -1)
        block = self.config.objective["anatomy"]["block"] or len(self.decoder.blocks)
        return self.organ_head(self.decoder.states(encoded.sequence, places, block)[:, 1:]).float()

    @torch.no_grad()
    def word_logits(self, volumes, texts, reports=None) -> Tensor:
        """Of every entry of the vocabulary in every place of texts, (B, L, V), seen beside the volumes.

        Args:
            volumes: see the class, one a text.
            texts: strings with [MASK] where words are hidden, or ids (B, L).
            reports: see the class; their sentences, with what they are aligned with, are one more token of
                the volume where the model was trained so. None: a report without sentences.
        """
        if self.text_decoder is None:
            raise ValueError("this model fills in no words: it was trained with weights.language=0")
        tokens = (texts if isinstance(texts, Tensor) else self.tokenize(texts)).to(self.device_of_weights)
        seen = self.vision.encode(self.prepared(volumes)).tokens
        prior = None
        if self.prior is not None:
            prior = torch.zeros_like(seen[:, :1])
            if reports is not None:
                prior = self._prior(self.patch_head(seen), *self._report_ids(reports, len(seen)))
        states, real = self.text.states(tokens)
        return self.text_decoder(self.report_head(states), real, seen, prior)

    def tokenize_sentences(self, reports: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Ids (B, text_length) of reports, and the sentence of each, -1 for special tokens and padding."""
        length, pad = self.config.text_length, self.text.pad
        tokens, numbers = (torch.full((len(reports), length), fill) for fill in (pad, -1))
        for row, sentences in enumerate(reports):
            ids, number = [], []
            for index, sentence in enumerate(sentences):
                first, *inside, last = (x for x in self.tokenize(sentence)[0].tolist() if x != pad)
                ids, number = ids + inside, number + [index] * len(inside)
            if ids:
                kept = min(len(ids), length - 2)
                tokens[row, : kept + 2] = torch.tensor([first, *ids[:kept], last])
                numbers[row, 1 : kept + 1] = torch.tensor(number[:kept])
        return tokens, numbers

    @property
    def device_of_weights(self) -> torch.device:
        """Where the model lies."""
        return next(self.parameters()).device

    def _report_ids(self, reports, count: int) -> tuple[Tensor, ...]:
        """Ids and sentences of as many reports as there are volumes."""
        if not isinstance(reports, tuple):
            is_one = bool(reports) and isinstance(reports[0], str)
            reports = self.tokenize_sentences([reports] if is_one else reports)
        if len(reports[0]) != count:
            raise ValueError(f"{len(reports[0])} reports for {count} volumes: give one a volume")
        return tuple(part.to(self.device_of_weights) for part in reports)

    def _prior(self, patches: Tensor, tokens: Tensor, sentence: Tensor) -> Tensor:
        """The mean of what the sentences are aligned with, as one more token of the volume: (B, 1, E)."""
        sentences, valid = self.sentence_vectors(tokens, sentence)
        similarity = normalized(Embedding(sentences)).mean @ normalized(Embedding(patches)).mean.mT
        order = similarity.argsort(dim=-1, descending=True, stable=True)
        rank = order.argsort(dim=-1)
        chosen = (rank < self.budgets(sentences)[..., None]).float()
        aligned = chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=1) @ patches.float()
        share = valid / valid.sum(dim=1, keepdim=True).clamp(min=1)
        return self.prior["weight"] * (share[:, None] @ aligned)
