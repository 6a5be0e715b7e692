"""ASAP: masked volumes and reports, organs in patches, and sentences against the patches they are about.

"ASAP: Advancing medical volumetric representation learning with anatomy-aware semantically-adaptive
pre-training"; what the paper leaves open is decided in `docs/reference/asap.md`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medclip_jax import text_transforms
from medclip_jax.losses import alignment, anatomy, masked
from medclip_jax.models.bert import BertConfig
from medclip_jax.models.fusion import PriorToken, TextDecoder
from medclip_jax.models.heads import OrganHead
from medclip_jax.models.mae import random_keep
from medclip_jax.models.sentences import AlignHead, PatchBudget, sentence_means
from medclip_jax.objectives.base import (
    Batch,
    DataSpec,
    Embedding,
    Features,
    Inputs,
    Selected,
    Term,
    Words,
    sample_keys,
)
from medclip_jax.objectives.mae import MaskedAutoencoder
from medclip_jax.objectives.towers import TextTower, text_defaults, vision_defaults
from medclip_jax.sections import Section
from medclip_jax.vectors import normalize

LABELS = ("share", "one_hot")


def default_config() -> Section:
    """The paper's values: ViT-B with patches of 8 x 16 x 16 voxels, 75 % of patches and of words hidden.

    The paper's text encoder is frozen: ``config.optimizer.frozen = (r"^text/",)``.
    """
    return Section(
        {
            "name": "asap",
            "vision": vision_defaults() | {"patch": (8, 16, 16), "pooling": "mean"},
            "text": text_defaults() | {"pooling": "mean"},
            # 0 leaves a term out, and what only it needs: without `anatomy` and `places` the data need no
            # organs. `places` is not in the paper: a sentence learns to select patches of the organs that it
            # names, and how many, see `losses.alignment.sentence_places` and `place_overlap`.
            "weights": {
                "reconstruction": 1.0,
                "anatomy": 1.0,
                "alignment": 1.0,
                "language": 1.0,
                "places": 0.0,
            },
            "mask_fraction": 0.75,  # share of the patches that is hidden
            "decoder": {"width": 768, "depth": 4, "heads": 16},
            "normalize_patches": False,  # as in `objectives.mae`, as the next three are
            "decoder_windows": (),
            "decoder_from_mean": False,
            "denominator": "masked",  # see `losses.masked.reconstruction`; "all" in the released code
            "anatomy": {
                "block": 2,  # of the decoder, whose tokens tell the organs; 0 = the last
                "labels": "share",  # "share" of the patch | "one_hot": 1 for the organ with the largest share
                # (names of the organs, ...) of each group that is predicted as one; () = each organ alone
                "groups": (),
                "organ_reduction": "sum",  # over organs; "mean" in the released code, O times smaller
            },
            "selection": {
                "candidates": (16, 32, 64),  # visible patches of a sentence, one of these
                "learned": True,  # False: the choice gets no gradient, as in the released code
                "fixed": 0,  # patches of every sentence instead; more than are visible = all; 0 = a choice
            },
            "most_sentences": 64,  # of a report; those beyond take no part, their share is logged
            "temperature": 0.07,
            "padded": "ignored",  # see `losses.alignment.sentence_contrast`; "negatives" in the released code
            "align_heads": True,  # False: towers are compared as they are; their widths must then be equal
            "hidden_words": 0.75,  # share of the words that is hidden
            "fusion": {"prior": True, "overall": True},  # the sentences' token; the volume's overall vector
            "text_decoder": {"depth": 6, "heads": 6, "mlp_ratio": 2.0},
        }
    )


@dataclass(frozen=True)
class Weights:
    """Weights of the terms; one with weight 0 is left out."""

    reconstruction: float
    anatomy: float
    alignment: float
    language: float
    places: float


class Asap(MaskedAutoencoder):
    """A masked autoencoder of volumes, whose tokens also tell organs, sentences and hidden words.

    Args:
        config: the keys of `default_config`.
        spec: fixes grid, vocabulary and organs.
        rngs: source of the initial weights.

    Raises:
        ValueError: an unknown option, more candidates than patches, or data without what the weights need.
    """

    has_text: ClassVar[bool] = True
    description: ClassVar[str] = "volumes and reports by masking, anatomy and alignment of sentences (ASAP)"
    torch_twin: ClassVar[str] = "medclip_jax.export.torch.asap:AsapModel"

    @classmethod
    def batch_fields(cls, config: Any) -> tuple[str, ...]:
        """Volumes, and what the terms with a weight read."""
        weights, fields = config.weights, ["volume"]
        if weights.anatomy or weights.places:
            fields.append("organs")
        if weights.alignment:
            fields += ["tokens", "sentence", "sentences"]
        if weights.places:
            fields.append("sentence_organs")
        if weights.language:
            fields.append("report_tokens")
        return tuple(fields)

    def __init__(self, config: Any, spec: DataSpec, *, rngs: nnx.Rngs):
        super().__init__(config, spec, rngs=rngs)
        self.weights = Weights(**config.weights)
        self.selects_patches = self.weights.alignment > 0
        if self.weights.places and not self.selects_patches:
            raise ValueError(
                "config.objective.weights.places compares patches with sentences, and weights.alignment "
                "is 0: set both or none"
            )
        self.predicts_organs = self.weights.anatomy > 0
        self.fills_words = self.weights.language > 0
        sentences = ("tokens", "sentence", "sentences") if config.fusion.prior else ()
        self.word_inputs = ("volume", "report_tokens", *sentences)
        self.denominator = config.denominator
        self._set_anatomy(config.anatomy, config.decoder.width, spec, rngs)
        self.text = TextTower(config.text, spec, rngs=rngs)
        self.mask_token = spec.mask_token
        self._set_alignment(config, rngs)
        self._set_language(config, rngs)

    def _set_anatomy(self, config: Any, width: int, spec: DataSpec, rngs: nnx.Rngs) -> None:
        if config.labels not in LABELS:
            choices = " or ".join(map(repr, LABELS))
            raise ValueError(f"config.objective.anatomy.labels is {config.labels!r}; choose {choices}")
        self.anatomy_block = config.block or len(self.decoder.blocks)
        self.one_hot, self.organ_reduction = config.labels == "one_hot", config.organ_reduction
        groups = tuple(tuple(group) for group in config.groups) or tuple((name,) for name in spec.organs)
        if missing := {name for group in groups for name in group} - set(spec.organs):
            raise ValueError(
                f"config.objective.anatomy.groups names {', '.join(sorted(missing))}, which the shards lack: "
                f"they hold {', '.join(spec.organs)}"
            )
        self.organs = tuple("+".join(group) for group in groups)
        self.groups = tuple(tuple(spec.organs.index(name) for name in group) for group in groups)
        self.organ_head = OrganHead(width, len(groups), rngs=rngs) if self.predicts_organs else None

    def _set_alignment(self, config: Any, rngs: nnx.Rngs) -> None:
        width, text_width = self.vision.width, self.text.width
        dtypes = jnp.dtype(config.vision.dtype), jnp.dtype(config.text.dtype)
        if not config.align_heads and width != text_width:
            raise ValueError(
                f"the volume tower is {width} wide, the text tower {text_width}: set "
                "config.objective.align_heads=True, or give both one width"
            )
        heads = (width, dtypes[0]), (text_width, dtypes[1])
        self.patch_head, self.sentence_head = (
            AlignHead(features, width, dtype=dtype, rngs=rngs) if config.align_heads else None
            for features, dtype in heads
        )
        self.most_sentences = config.most_sentences
        self.temperature, self.padded = config.temperature, config.padded
        self.fixed = config.selection.fixed
        candidates, learned = config.selection.candidates, config.selection.learned
        self.budget = None if self.fixed else PatchBudget(width, candidates, learned=learned, rngs=rngs)
        if self.budget is not None and self.budget.candidates[-1] > self.keep:
            raise ValueError(
                f"config.objective.selection.candidates goes to {self.budget.candidates[-1]} patches, but "
                f"{self.keep} of {self.tokens} are visible: lower it, or take smaller patches"
            )

    def _set_language(self, config: Any, rngs: nnx.Rngs) -> None:
        self.hidden_words = config.hidden_words
        if not self.fills_words:
            self.report_head = self.prior = self.text_decoder = None
            return
        if config.fusion.prior and not self.selects_patches:
            raise ValueError(
                "config.objective.fusion.prior is a token of what sentences are aligned with, and "
                "config.objective.weights.alignment is 0: set fusion.prior=False, too"
            )
        width, sizes = self.vision.width, self.text.encoder.config
        sizes = BertConfig(
            vocabulary_size=sizes.vocabulary_size,
            width=width,
            depth=config.text_decoder.depth,
            heads=config.text_decoder.heads,
            mlp_width=round(width * config.text_decoder.mlp_ratio),
            layer_norm_epsilon=sizes.layer_norm_epsilon,
        )
        dtype = jnp.dtype(config.text.dtype)
        self.report_head = AlignHead(self.text.width, width, dtype=dtype, rngs=rngs)
        self.prior = PriorToken() if config.fusion.prior else None
        self.text_decoder = TextDecoder(
            sizes,
            width,
            overall=config.fusion.overall,
            dtype=dtype,
            remat=config.text.remat,
            scan=config.text.scan,
            rngs=rngs,
        )

    def encode(self, batch: Batch, key: jax.Array, *, train: bool) -> Features:
        """Of every term, and of what is logged, a sample's sum and its count: (B, 2)."""
        augment_key, mask_key, word_key = (
            sample_keys(part, batch["sample"]) for part in jax.random.split(key, 3)
        )
        keys = augment_key if train else None
        volume = self.vision.augment(batch["volume"], keys)
        voxels = self.vision.to_voxels(volume)
        keep, restore, mask = random_keep(mask_key, self.tokens, self.keep)
        encoded = self.vision.encode(voxels, keep, train=train)
        predicted, states = self.decoder.with_states(encoded, restore, block=self.anatomy_block)
        target = self._target(volume, voxels)
        features = {
            "reconstruction": masked.reconstruction_sums(
                predicted,
                target,
                mask,
                normalize_patches=self.normalize_patches,
                denominator=self.denominator,
            )
        }
        if self.predicts_organs:
            features["anatomy"] = anatomy.organ_occupancy_sums(
                self.organ_head(states), self._labels(batch, keys), organ_reduction=self.organ_reduction
            )
        prior = None
        if self.selects_patches:
            compared = self._compared(encoded.tokens, batch)
            choice = self._choose(*compared[:2])
            sums, prior = self._align(*compared, choice, batch["sentences"])
            features |= sums
            if self.weights.places:
                features |= self._places(*compared[:2], choice, self._named_shares(batch, keep, keys))
        if self.fills_words:
            tokens = batch["report_tokens"]
            masked_tokens, hidden = self._hide_words(tokens, word_key)
            states = self._decode(masked_tokens, encoded.tokens, prior)
            loss, hits, count = self.text_decoder.word_sums(states, tokens, hidden)
            features |= {"language": (loss, count), "word_accuracy": (hits, count)}
        return {name: jnp.stack(pair, axis=1) for name, pair in features.items()}

    def calibrate(self, batch: Batch, key: jax.Array) -> None:
        """Also what the volume tower sets by the first batch (`extremes`)."""
        super().calibrate(batch, key)
        self.vision.calibrate(self.vision.to_voxels(batch["volume"]))

    def _compared(self, tokens, batch):
        """Vectors of patches (B, N, W) and of sentences (B, S, W), and which sentences there are (B, S)."""
        return self._patch_vectors(tokens), *self._sentences(batch["tokens"], batch["sentence"])

    def _choose(self, patches, sentences):
        """Patches of each sentence: their number (B, S), those of each number M, and the number chosen.

        The second is M times (B, S, N) bool; the third (B, S, M), 1 at the number chosen.
        """
        rank = alignment.similarity_ranks(patches, sentences)
        if self.budget is None:
            numbers = (min(self.fixed, patches.shape[1]),)
            count, chosen = jnp.full(rank.shape[:2], numbers[0]), jnp.ones((*rank.shape[:2], 1))
        else:
            numbers, (count, chosen) = self.budget.candidates, self.budget(sentences)
        return count, [rank < number for number in numbers], chosen

    def _align(self, patches, sentences, valid, choice, stated):
        """Sums of the alignment and of what is logged of it, and the token that the sentences make."""
        count, selections, chosen = choice
        # One mean for each number of patches, so that the choice between them has a gradient.
        aligned = sum(
            chosen[..., index, None] * alignment.mean_of_selected(patches, selected)
            for index, selected in enumerate(selections)
        )
        loss = alignment.sentence_contrast(
            aligned, sentences, valid, temperature=self.temperature, padded=self.padded
        )
        used = valid.sum(axis=1).astype(jnp.float32)
        stated = stated.astype(jnp.float32)
        sums = {
            "alignment": (loss.sum(axis=1), used),
            "patches_selected": (jnp.where(valid, count, 0).sum(axis=1).astype(jnp.float32), used),
            "sentences_lost": (stated - used, stated),
        }
        return sums, None if self.prior is None else self.prior(aligned, valid)

    def _named_shares(self, batch, keep, keys):
        """Share of each visible patch that the organs fill that a sentence names: (B, S, N)."""
        named, _ = sentence_means(batch["sentence_organs"], batch["sentence"], self.most_sentences)
        shares = jnp.take_along_axis(self.vision.organ_shares(batch["organs"], keys), keep[:, None], axis=2)
        return jnp.minimum(jnp.einsum("bso,bon->bsn", named, shares), 1.0)

    def _places(self, patches, sentences, choice, shares):
        """Sums over the sentences that name an organ that shows in a visible patch, and their number."""
        _, selections, chosen = choice
        loss, names = alignment.sentence_places(patches, sentences, shares, temperature=self.temperature)
        overlap = sum(
            chosen[..., index] * alignment.place_overlap(selected, shares)
            for index, selected in enumerate(selections)
        )
        count = names.sum(axis=1).astype(jnp.float32)
        extent = jnp.where(names, 1.0 - overlap, 0.0)
        return {"places": (loss.sum(axis=1), count), "extent": (extent.sum(axis=1), count)}

    def couple(self, features: Features, batch: Batch) -> dict[str, Term]:
        """Means over the patches, sentences and words of the batch; then what is only logged.

        With a weight of `places` also `extent`, 1 - the Dice coefficient of the patches selected and the
        organs named, which has the same weight and reaches the choice of their number alone.

        Logged: patches that a sentence selects, the share of sentences that take no part (cut off by
        `config.data.text_length` or beyond `most_sentences`), and the share of hidden words that were found.
        """
        weights = asdict(self.weights) | {"extent": self.weights.places}
        return {
            name: Term(pairs[:, 0].sum(), pairs[:, 1].sum(), weights.get(name, 0.0))
            for name, pairs in features.items()
        }

    def _labels(self, batch, keys):
        """What is predicted of each patch, by organ or group of organs: (B, N, O)."""
        shares = self.vision.organ_shares(batch["organs"], keys)
        shares = jnp.stack([shares[:, list(group)].sum(axis=1) for group in self.groups], axis=-1)
        shares = jnp.minimum(shares, 1.0)
        if self.one_hot:
            largest = jax.nn.one_hot(shares.argmax(axis=-1), len(self.groups))
            return jnp.where(shares.max(axis=-1, keepdims=True) > 0, largest, 0.0)
        return shares

    def _patch_vectors(self, tokens):
        return tokens if self.patch_head is None else self.patch_head(tokens)

    def _sentences(self, tokens, sentence):
        """Vectors (B, S, W) of the sentences of texts, and which there are."""
        states = self.text.encoder(tokens, tokens != self.text.pad_token)
        if self.sentence_head is not None:
            states = self.sentence_head(states)
        return sentence_means(states, sentence, self.most_sentences)

    def _hide_words(self, tokens, keys):
        return text_transforms.mask_tokens(
            tokens,
            keys,
            share=self.hidden_words,
            mask_token=self.mask_token,
            pad_token=self.text.pad_token,
        )

    def _decode(self, masked_tokens, tokens, prior):
        mask = masked_tokens != self.text.pad_token
        states = self.report_head(self.text.encoder(masked_tokens, mask))
        return self.text_decoder(states, mask, tokens, prior)

    def embed_volumes(self, inputs: Inputs) -> Embedding:
        """Mean of the patches' vectors, normalized."""
        return Embedding(normalize(self._visible_patches(inputs).astype(jnp.float32).mean(axis=1)))

    def embed_patches(self, inputs: Inputs) -> Float[Array, "B N D"]:
        """Vectors of all patches, to be compared with those of sentences; normalized."""
        return normalize(self._visible_patches(inputs))

    def _visible_patches(self, inputs):
        return self._patch_vectors(self.vision.encode(self.vision.to_voxels(inputs["volume"])).tokens)

    def embed_texts(self, tokens: Int[Array, "B L"]) -> Embedding:
        """Vectors of texts, each taken as one sentence; normalized."""
        places = jnp.arange(tokens.shape[1])
        words = (tokens != self.text.pad_token).sum(axis=1, keepdims=True) - 2
        one = jnp.where((places >= 1) & (places <= words), 0, -1)
        return Embedding(normalize(self._sentences(tokens, one)[0][:, 0]))

    def select(self, inputs: Inputs, tokens: Int[Array, "B L"], sentence: Int[Array, "B L"]) -> Selected:
        """Which patches the sentences of reports are about, with every patch visible.

        A number of patches stands for as large a part of the volume as in training, where some are visible.

        Args:
            inputs: as for `embed_volumes`.
            tokens, sentence: batch fields.
        """
        sentences, valid = self._sentences(tokens, sentence)
        patches = self.embed_patches(inputs)
        similarity = jnp.einsum("bsd,bnd->bsn", normalize(sentences), patches)
        count = jnp.full(valid.shape, self.fixed) if self.budget is None else self.budget(sentences)[0]
        count = jnp.clip(jnp.round(count * self.tokens / self.keep), 1, self.tokens).astype(jnp.int32)
        return Selected(similarity, count, valid)

    def predict_organs(self, inputs: Inputs) -> Float[Array, "B N O"]:
        """Share of each patch that each of `organ_names` fills, with every patch visible.

        Raises:
            ValueError: the model was trained without `anatomy`.
        """
        if not self.predicts_organs:
            raise ValueError("this model tells no organs: it was trained with weights.anatomy=0")
        encoded = self.vision.encode(self.vision.to_voxels(inputs["volume"]))
        order = jnp.broadcast_to(jnp.arange(self.tokens), (encoded.tokens.shape[0], self.tokens))
        _, states = self.decoder.with_states(encoded, order, block=self.anatomy_block)
        return jax.nn.sigmoid(self.organ_head(states).astype(jnp.float32))

    def organ_names(self) -> tuple[str, ...]:
        """Organs, or groups of them."""
        return self.organs

    def fill_words(self, batch: Batch, key: jax.Array, *, image: str = "own") -> Words:
        """Hide words of reports and fill them in, with every patch visible.

        Args:
            batch: the fields of `word_inputs`.
            key: draws which words are hidden.
            image: "own"; "other", that of the sample before; "none", a volume whose tokens are all 0.

        Raises:
            ValueError: an unknown `image`, or the model was trained without `language`.
        """
        if image not in ("own", "other", "none"):
            raise ValueError(f"image={image!r} is unknown: use 'own', 'other' or 'none'")
        if not self.fills_words:
            raise ValueError("this model fills in no words: it was trained with weights.language=0")
        tokens = self.vision.encode(self.vision.to_voxels(batch["volume"])).tokens
        prior = None
        if self.prior is not None:
            compared = self._compared(tokens, batch)
            prior = self._align(*compared, self._choose(*compared[:2]), batch["sentences"])[1]
        if image == "other":
            tokens, prior = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), (tokens, prior))
        elif image == "none":
            tokens, prior = jax.tree.map(jnp.zeros_like, (tokens, prior))
        masked_tokens, hidden = self._hide_words(batch["report_tokens"], sample_keys(key, batch["sample"]))
        logits = self.text_decoder.logits(self._decode(masked_tokens, tokens, prior))
        return Words(masked_tokens, hidden, logits.argmax(axis=-1))

    def pooling(self) -> str:
        """Of both towers."""
        return f"tokens of volumes by {self.vision.pooling}, text mean of its words"

    def towers(self) -> dict[str, str]:
        """Both towers; the decoders are for training."""
        return {"volume tower": self.vision.describe(), "text tower": self.text.describe()}
