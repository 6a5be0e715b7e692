"""HiPro-CT: volumes, reports, organs and their sentences as Gaussians, aligned and nested.

"HiPro-CT: A Hierarchical Probabilistic Framework for 3D Medical Vision-Language Alignment"; what the paper
leaves open is decided in `docs/reference/hipro-ct.md`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from medclip_jax import text_transforms, transforms
from medclip_jax.losses import chunked, probabilistic
from medclip_jax.models.gaussian import Gaussian, GaussianHead, soft_masked_mean
from medclip_jax.models.heads import LogitScale
from medclip_jax.objectives.base import (
    Batch,
    DataSpec,
    Embedding,
    Features,
    Inputs,
    Objective,
    OrganEmbedding,
    Term,
    sample_keys,
)
from medclip_jax.objectives.towers import TextTower, VisionTower, text_defaults, vision_defaults
from medclip_jax.sections import Section
from medclip_jax.sharding import batch_sharded

DIRECTIONS = ("global_contains_local", "local_contains_global")
"""Which of global and local (organ, sentence) is wider: as in the paper, and as in its published abstract."""

HEADS = 8
"""Of the attention to a volume's tokens, where the volume tower has none of its own."""

GLOBALS, LOCALS, DAMAGED = ("volume", "text"), ("organ", "sentence"), ("damaged_volume", "damaged_text")


def default_config() -> Section:
    """The paper's values: a ViT of 6 layers, a BERT-base text tower, 512 dimensions, scale 10, bias -10.

    The term `damage` is not in the paper: it includes volume and report in a damaged view of themselves, so
    that the variance learns to grow with damage.
    """
    return Section(
        {
            "name": "hipro_ct",
            "vision": vision_defaults() | {"patch": (8, 24, 24), "depth": 6, "pooling": "mean"},
            "text": text_defaults(),
            "embedding_width": 512,  # of the joint space
            "centered": False,  # as in `objectives.clip`
            "logit_scale": 10.0,  # at the start; learned
            "logit_bias": -10.0,  # at the start; learned
            # Of the terms beside the global contrast. 0 leaves a term out, and what only it needs: with
            # `local` and `hierarchy` at 0 the data need no organs.
            "weights": {"local": 1.0, "hierarchy": 0.1, "cross": 1e-4, "bottleneck": 0.1, "damage": 0.0},
            # White noise of up to so many HU; a text without up to this share of its tokens.
            "damage": {"noise_hu": 200.0, "cut_text": 0.75},
            # Options of `losses.probabilistic.inclusion_loss`.
            "inclusion": {"form": "exact", "reduce": "per_dim", "scale": 1.0, "eps": 1e-6},
            "direction": "global_contains_local",  # the wider one; or "local_contains_global"
            # Normal organs of one name in different patients are neither positives nor negatives.
            "ignore_normal_pairs": True,
            "same_study": "positive",  # two volumes of a study to each other's report: "positive" | "ignore"
            "bottleneck_reduce": "mean",  # over the dimensions, see `losses.probabilistic.vib`
            "chunk_rows": 0,  # as in `objectives.clip`
        }
    )


@dataclass(frozen=True)
class Weights:
    """Weights of the terms beside the global contrast; one with weight 0 is left out."""

    local: float
    hierarchy: float
    cross: float
    bottleneck: float
    damage: float


@dataclass(frozen=True)
class Inclusion:
    """Options of `losses.probabilistic.inclusion_loss`."""

    form: str
    reduce: str
    scale: float
    eps: float


@dataclass(frozen=True)
class Damage:
    """How far the damaged views go, at most.

    Attributes:
        noise_hu: standard deviation of white noise.
        cut_text: share of a text's tokens that is cut off its end.
    """

    noise_hu: float
    cut_text: float


class HiProCt(Objective):
    """Two towers with Gaussian heads; the vision head also reads parts of a volume, the text head sentences.

    Args:
        config: the keys of `default_config`.
        spec: fixes grid, vocabulary and organs.
        rngs: source of the initial weights.

    Raises:
        ValueError: an unknown option, a damage out of range, or shards without organs where the weights ask
            for local terms.
    """

    has_text: ClassVar[bool] = True
    embeds_organs: ClassVar[bool] = True
    description: ClassVar[str] = "volumes, reports, organs and sentences as Gaussians of one space (HiPro-CT)"
    torch_twin: ClassVar[str] = "medclip_jax.export.torch.gaussian:GaussianModel"

    @classmethod
    def batch_fields(cls, config: Any) -> tuple[str, ...]:
        """Volumes and reports; with local terms, one organ of each volume and its sentences, too."""
        local = config.weights.local > 0 or config.weights.hierarchy > 0
        organ = ("organs", "organ", "organ_tokens", "organ_normal") if local else ()
        return ("volume", "tokens", *organ)

    def __init__(self, config: Any, spec: DataSpec, *, rngs: nnx.Rngs):
        if config.direction not in DIRECTIONS:
            choices = " or ".join(map(repr, DIRECTIONS))
            raise ValueError(f"config.objective.direction is {config.direction!r}; choose {choices}")
        self.weights = Weights(**config.weights)
        self.local = self.weights.local > 0 or self.weights.hierarchy > 0
        if self.local and not spec.organs:
            raise ValueError(
                "the shards hold no organs: prepare from a table with organ masks and --organ-cell, or set "
                "config.objective.weights.local=0 and config.objective.weights.hierarchy=0"
            )
        self.vision = VisionTower(config.vision, spec, rngs=rngs)
        if self.vision.pooling != "mean":
            raise ValueError(
                f"config.objective.vision.pooling is {self.vision.pooling!r}: an organ's vector is the "
                "mean over its patches, so the volume's must be one, too: set it to 'mean'"
            )
        self.text = TextTower(config.text, spec, rngs=rngs)
        self.volume_head = GaussianHead(
            self.vision.pooled_width,
            self.vision.width,
            config.embedding_width,
            config.vision.get("heads", HEADS),
            bias=config.centered,
            dtype=jnp.dtype(config.vision.dtype),
            rngs=rngs,
        )
        self.text_head = GaussianHead(
            self.text.width,
            self.text.width,
            config.embedding_width,
            self.text.encoder.config.heads,
            bias=config.centered,
            dtype=jnp.dtype(config.text.dtype),
            rngs=rngs,
        )
        self.centered = config.centered
        self.logit_scale = LogitScale(config.logit_scale, bias=config.logit_bias)
        self.inclusion = Inclusion(**config.inclusion)
        self.damage = Damage(**config.damage)
        if self.damage.noise_hu < 0 or not 0 <= self.damage.cut_text <= 1:
            raise ValueError(
                f"config.objective.damage is {dict(config.damage)}: noise_hu is 0 or more, "
                "cut_text a share up to 1"
            )
        self.direction = config.direction
        self.ignore_normal_pairs = config.ignore_normal_pairs
        self.same_study = config.same_study
        self.bottleneck_reduce = config.bottleneck_reduce
        self.chunk_rows = config.chunk_rows

    def calibrate(self, batch: Batch, key: jax.Array) -> None:
        """With `centered`, open the cone in which all means lie at the start, see `objectives.clip`."""
        if self.centered:
            tokens = self._patches(batch["volume"], train=True)  # batch norm as in the first step
            self.volume_head.center(soft_masked_mean(tokens, _everything(tokens))[:, 0])
            self.text_head.center(self._states(batch["tokens"])[0])

    def encode(self, batch: Batch, key: jax.Array, *, train: bool) -> Features:
        """Means and log-variances (B, D) of volume and text; with local terms, of organ and sentence, too.

        `valid` (B,) then says whether the sample has both. In training with `weights.damage`, of damaged
        volume and text, too.
        """
        keys = sample_keys(key, batch["sample"]) if train else None
        tokens = self._patches(batch["volume"], keys, train=train)
        found, features = {"text": self._texts(batch["tokens"])}, {}
        weights = _everything(tokens)
        if self.local:
            organ = self._drawn_organ(batch, keys)
            weights = jnp.concatenate([weights, organ[:, None]], axis=1)
            found["sentence"] = self._texts(batch["organ_tokens"])
            has_text = jnp.any(batch["organ_tokens"] != self.text.pad_token, axis=1)
            features["valid"] = jnp.any(organ > 0, axis=1) & has_text
        parts = self._parts(tokens, weights)
        found["volume"] = Gaussian(*(x[:, 0] for x in parts))
        if self.local:
            found["organ"] = Gaussian(*(x[:, 1] for x in parts))
        if train and self.weights.damage:
            found["damaged_volume"], found["damaged_text"] = self._damaged(batch, keys)
        for kind, gaussian in found.items():
            features[f"{kind}_mean"] = gaussian.mean
            features[f"{kind}_log_variance"] = gaussian.log_variance
        return features

    def couple(self, features: Features, batch: Batch) -> dict[str, Term]:
        """Global and local contrast, inclusions, bottleneck; then what is only logged.

        Logged: the share of inclusion scores beyond the limit (`*_compressed`), mean variances of each kind
        (`*_variance`), the shares of organs and sentences that lie inside their volume or report
        (`organ_in_volume`, `sentence_in_text`: inclusion of the full vectors above 0), and the share of
        volumes nearest to their own report (`top1`).
        """
        gaussians = {
            kind: Gaussian(features[f"{kind}_mean"], features[f"{kind}_log_variance"])
            for kind in (*GLOBALS, *LOCALS, *DAMAGED)
            if f"{kind}_mean" in features
        }
        everyone = jnp.ones(features["volume_mean"].shape[0], bool)
        valid = {kind: features["valid"] if kind in LOCALS else everyone for kind in gaussians}
        terms = self._contrasts(gaussians, valid, batch)
        terms |= self._inclusions(gaussians, valid)
        if self.weights.bottleneck:
            found = [
                _summed(probabilistic.vib(*gaussian, reduce=self.bottleneck_reduce), valid[kind])
                for kind, gaussian in gaussians.items()
            ]
            sums, counts = zip(*found, strict=True)
            terms["bottleneck"] = Term(sum(sums), sum(counts), self.weights.bottleneck)
        return terms | self._logged(gaussians, valid, batch)

    def _contrasts(self, gaussians, valid, batch):
        options = {
            "logit_scale": self.logit_scale(),
            "logit_bias": self.logit_scale.bias[...],
            "same_group": self.same_study,
            "chunk_rows": self._chunk_rows(batch),
        }
        size = batch["study"].shape[0]
        pair = (*gaussians["volume"], *gaussians["text"])
        loss = probabilistic.pair_contrast(*pair, groups=batch["study"], **options)
        terms = {"contrast": Term(loss * size, jnp.float32(size))}
        if self.weights.local:
            organ, taking_part = batch["organ"], valid["organ"]
            loss = probabilistic.pair_contrast(
                *gaussians["organ"],
                *gaussians["sentence"],
                groups=jnp.concatenate([batch["study"], organ[:, None]], axis=1),
                alike=jnp.where(batch["organ_normal"] == 1, organ, -1) if self.ignore_normal_pairs else None,
                valid=taking_part,
                **options,
            )
            count = taking_part.sum().astype(jnp.float32)
            terms["local_contrast"] = Term(loss * count, count, self.weights.local)
        return terms

    def _inclusions(self, gaussians, valid):
        wanted = []
        if self.weights.hierarchy:
            for part, around in zip(LOCALS, GLOBALS, strict=True):
                inside, outside = (part, around) if self.direction == DIRECTIONS[0] else (around, part)
                wanted.append((f"{around}_hierarchy", inside, outside, self.weights.hierarchy))
        if self.weights.cross:
            wanted.append(("cross", "volume", "text", self.weights.cross))
        for intact, damaged in zip(GLOBALS, DAMAGED, strict=True):
            if damaged in gaussians:
                wanted.append((f"{intact}_damage", intact, damaged, self.weights.damage))
        terms = {}
        for name, inside, outside, weight in wanted:
            both = (*gaussians[inside], *gaussians[outside])
            loss, compressed = probabilistic.inclusion_loss(*both, **asdict(self.inclusion))
            counted = valid[inside] & valid[outside]
            terms[name] = Term(*_summed(loss, counted), weight)
            terms[f"{name}_compressed"] = Term(*_summed(compressed, counted), weight=0.0)
        return terms

    def _logged(self, gaussians, valid, batch):
        gaussians = jax.lax.stop_gradient(gaussians)
        found = {
            f"{kind}_variance": _summed(jnp.exp(gaussian.log_variance).mean(axis=1), valid[kind])
            for kind, gaussian in gaussians.items()
        }
        for part, around in zip(LOCALS, GLOBALS, strict=True) if self.local else ():
            score = probabilistic.inclusion(
                *gaussians[part], *gaussians[around], form=self.inclusion.form, reduce="joint"
            )
            found[f"{part}_in_{around}"] = _summed((score > 0).astype(jnp.float32), valid[part])
        found["top1"] = _summed(
            _first_hits(gaussians, batch["study"], self._chunk_rows(batch)), valid["volume"]
        )
        one = jnp.float32(1.0)
        found["logit_scale"] = (jax.lax.stop_gradient(self.logit_scale()), one)
        found["logit_bias"] = (jax.lax.stop_gradient(self.logit_scale.bias[...]), one)
        return {name: Term(*sums, weight=0.0) for name, sums in found.items()}

    def _chunk_rows(self, batch: Batch) -> int:
        return self.chunk_rows or chunked.automatic(batch["study"].shape[0])

    def embed_volumes(self, inputs: Inputs) -> Embedding:
        """Gaussians of volumes."""
        return Embedding(*self._global(self._patches(inputs["volume"])))

    def pool_volumes(self, inputs: Inputs) -> Float[Array, "B pooled"]:
        """What the volume tower pools, before the Gaussian heads."""
        return self.vision(inputs["volume"]).astype(jnp.float32)

    def embed_texts(self, tokens: Int[Array, "B L"]) -> Embedding:
        """Gaussians of texts: reports, sentences, prompts."""
        return Embedding(*self._texts(tokens))

    def embed_organs(self, inputs: Inputs, organs: UInt8[Array, "B O d h w"]) -> OrganEmbedding:
        """Gaussians of organs of volumes. Deterministic.

        Args:
            inputs: as for `embed_volumes`.
            organs: occupancy of the organs' cells, as in a batch.

        Raises:
            ValueError: cells that do not divide the patch.
        """
        weights = self.vision.organ_shares(organs)
        parts = self._parts(self._patches(inputs["volume"]), weights)
        return OrganEmbedding(*parts, jnp.any(weights > 0, axis=-1))

    def similarity_scale(self) -> Float[Array, ""]:
        """The learned multiplier of the similarity of Gaussians."""
        return self.logit_scale()

    def pooling(self) -> str:
        """Of both towers."""
        return f"volume {self.vision.pooling}, text {self.text.pooling}"

    def towers(self) -> dict[str, str]:
        """Both towers."""
        return {"volume tower": self.vision.describe(), "text tower": self.text.describe()}

    def explained_tower(self) -> VisionTower:
        """The volume tower."""
        return self.vision

    def to_joint_space(self, pooled: Float[Array, "B pooled"]) -> Float[Array, "B D"]:
        """The means of the Gaussians of volumes."""
        return self.volume_head.mean(pooled)

    def _damaged(self, batch: Batch, keys: jax.Array) -> tuple[Gaussian, Gaussian]:
        """The volumes, augmented as in this step, under noise, and the texts without their end.

        Chun et al. 2024, "Probabilistic language-image pre-training", section 3.3, do so with masked inputs.
        """
        drawn = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 1)))(keys)
        noisy = transforms.augment(batch["volume"], drawn[:, 0], noise_hu=self.damage.noise_hu)
        cut = text_transforms.cut_texts(
            batch["tokens"], drawn[:, 1], share=self.damage.cut_text, pad_token=self.text.pad_token
        )
        return self._global(self._patches(noisy, keys, train=True)), self._texts(cut)

    def _patches(
        self, volumes: Num[Array, "B D H W"], keys: jax.Array | None = None, *, train: bool = False
    ) -> Float[Array, "B N width"]:
        return self.vision.encode(self.vision.to_voxels(volumes, keys), train=train).tokens

    def _global(self, tokens: Float[Array, "B N width"]) -> Gaussian:
        return Gaussian(*(x[:, 0] for x in self._parts(tokens, _everything(tokens))))

    def _parts(self, tokens: Float[Array, "B N width"], weights: Float[Array, "B P N"]) -> Gaussian:
        return self.volume_head(soft_masked_mean(tokens, weights), tokens, weights > 0)

    def _texts(self, tokens: Int[Array, "B L"]) -> Gaussian:
        pooled, states, mask = self._states(tokens)
        return Gaussian(*(x[:, 0] for x in self.text_head(pooled[:, None], states, mask[:, None])))

    def _states(
        self, tokens: Int[Array, "B L"]
    ) -> tuple[Float[Array, "B width"], Float[Array, "B L width"], Bool[Array, "B L"]]:
        """Pooled vector, states and what is no padding."""
        mask = tokens != self.text.pad_token
        states = self.text.encoder(tokens, mask)
        return self.text.encoder.pool(states, tokens, mask, self.text.pooling), states, mask

    def _drawn_organ(self, batch: Batch, keys: jax.Array | None) -> Float[Array, "B N"]:
        """Occupancy of the organ that the pipeline drew; 0 everywhere where it drew none."""
        drawn = batch["organ"]
        index = jnp.maximum(drawn, 0)[:, None, None, None, None]
        cells = batch_sharded(jnp.take_along_axis(batch_sharded(batch["organs"]), index, axis=1))
        return jnp.where((drawn >= 0)[:, None], self.vision.organ_shares(cells, keys)[:, 0], 0.0)


def _everything(tokens: Float[Array, "B N width"]) -> Float[Array, "B 1 N"]:
    """Weights of the full volume."""
    return jnp.ones((tokens.shape[0], 1, tokens.shape[1]))


def _summed(
    values: Float[Array, " B"], valid: Bool[Array, " B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum over the valid ones, and how many they are."""
    return jnp.where(valid, values, 0.0).sum(), valid.sum().astype(jnp.float32)


def _first_hits(
    gaussians: dict[str, Gaussian], study: Int[Array, "B words"], chunk_rows: int
) -> Float[Array, " B"]:
    """1 where the text nearest to a volume, by the distance of Gaussians, is of the same study."""

    def hits(rows, columns):
        # The volume's own length and trace are the same for all texts.
        nearness = rows["mean"] @ columns["mean"].T - 0.5 * columns["trace"]
        nearest = nearness.argmax(axis=1)
        return jnp.all(columns["study"][nearest] == rows["study"], axis=1).astype(jnp.float32)

    rows = {"mean": gaussians["volume"].mean, "study": study}
    text = gaussians["text"]
    columns = {"mean": text.mean, "trace": probabilistic.trace(text.log_variance), "study": study}
    return chunked.map_rows(hits, rows, columns, chunk_rows)
