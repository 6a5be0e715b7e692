"""The BERT encoder, number for number the one of transformers' BertModel."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from medclip_jax.models import blocks
from medclip_jax.models.activations import gelu
from medclip_jax.models.adapters import AdapterSize
from medclip_jax.models.attention import SelfAttention
from medclip_jax.models.linear import Linear
from medclip_jax.models.norms import LayerNorm
from medclip_jax.sharding import batch_sharded

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@dataclass(frozen=True)
class BertConfig:
    """Sizes and constants of a BERT encoder; the defaults are BERT base's.

    Attributes:
        vocabulary_size: entries of the tokenizer.
        width: features of a token.
        depth: number of blocks.
        heads: attention heads.
        mlp_width: hidden features of the MLP.
        max_positions: longest sequence in tokens.
        type_vocabulary: entries of the segment table; only segment 0 is used here.
        layer_norm_epsilon: of every LayerNorm.
        pad_token: id that marks padding.
        activation: "gelu" (exact), "gelu_new" (tanh form) or "relu".
    """

    vocabulary_size: int = 30522
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 512
    type_vocabulary: int = 2
    layer_norm_epsilon: float = 1e-12
    pad_token: int = 0
    activation: str = "gelu"

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is unknown: use one of {sorted(ACTIVATIONS)}")

    @classmethod
    def from_hf(cls, folder: str | Path) -> BertConfig:
        """Read the `config.json` of a Hugging Face folder.

        Raises:
            FileNotFoundError: no `config.json` in the folder.
            ValueError: the file describes something other than a BERT encoder; the message names the entry.
        """
        file = Path(folder) / "config.json"
        if not file.exists():
            raise FileNotFoundError(f"{folder} holds no config.json: give a folder saved by transformers")
        entries = json.loads(file.read_text())
        kind = entries.get("model_type", "bert")
        if kind not in ("bert", "cxr-bert"):
            raise ValueError(f"{file} says model_type {kind!r}: only BERT encoders ('bert', 'cxr-bert') fit")
        if entries.get("position_embedding_type", "absolute") != "absolute":
            kind = entries["position_embedding_type"]
            raise ValueError(f"{file} says position_embedding_type {kind!r}: only 'absolute' fits")
        for flag in ("is_decoder", "add_cross_attention"):
            if entries.get(flag, False):
                raise ValueError(f"{file} says {flag}: true, a decoder; give an encoder's folder")
        names = {
            "vocabulary_size": "vocab_size",
            "width": "hidden_size",
            "depth": "num_hidden_layers",
            "heads": "num_attention_heads",
            "mlp_width": "intermediate_size",
            "max_positions": "max_position_embeddings",
            "type_vocabulary": "type_vocab_size",
            "layer_norm_epsilon": "layer_norm_eps",
            "pad_token": "pad_token_id",
            "activation": "hidden_act",
        }
        return cls(
            **{ours: entries[theirs] for ours, theirs in names.items() if entries.get(theirs) is not None}
        )


class BertBlock(nnx.Module):
    """Post-norm block: ``norm(x + attention(x))``, then ``norm(x + mlp(x))``."""

    def __init__(
        self, config: BertConfig, *, dtype=jnp.float32, adapters: AdapterSize | None = None, rngs: nnx.Rngs
    ):
        # 0.02, as published, is for a width of 768: at a tenth of it attention would mix next to nothing in.
        init = nnx.initializers.xavier_uniform()
        norm = {"epsilon": config.layer_norm_epsilon, "dtype": dtype, "rngs": rngs}
        linear = {"dtype": dtype, "kernel_init": init, "rngs": rngs}
        self.activation = config.activation
        self.attention = SelfAttention(
            config.width, config.heads, dtype=dtype, kernel_init=init, adapters=adapters, rngs=rngs
        )
        self.attention_norm = LayerNorm(config.width, **norm)
        self.mlp_in = Linear(config.width, config.mlp_width, **linear)
        self.mlp_out = Linear(config.mlp_width, config.width, **linear)
        self.mlp_norm = LayerNorm(config.width, **norm)

    def __call__(
        self,
        states: Float[Array, "batch tokens features"],
        mask: Bool[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch tokens features"]:
        """(B, L, W) to (B, L, W); `mask` is False on padding."""
        states = self.attention_norm(states + self.attention(states, mask))
        hidden = ACTIVATIONS[self.activation](self.mlp_in(states))
        return self.mlp_norm(states + self.mlp_out(hidden))


class Bert(nnx.Module):
    """BERT encoder without pooler and without dropout.

    Args:
        config: sizes; `BertConfig.from_hf(folder)` reads them.
        dtype: compute type; parameters are float32.
        remat: one of `blocks.REMAT`, see `blocks.run`.
        scan: one compiled block in a loop, see `blocks.run`.
        adapters: size of low-rank adapters of every attention; None for none.
        rngs: draws the initial parameters (tables normal 0.02, matrices Xavier).

    References:
        Devlin et al. 2019. Weights: `medclip_jax.weights.text`.
    """

    def __init__(
        self,
        config: BertConfig,
        *,
        dtype=jnp.float32,
        remat: str = "none",
        scan: bool = False,
        adapters: AdapterSize | None = None,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.normal(0.02)
        table = {"dtype": dtype, "embedding_init": init, "rngs": rngs}
        self.config = config
        self.remat = remat
        self.scan = scan
        self.words = nnx.Embed(config.vocabulary_size, config.width, **table)
        self.positions = nnx.Embed(config.max_positions, config.width, **table)
        self.types = nnx.Embed(config.type_vocabulary, config.width, **table)
        self.norm = LayerNorm(config.width, epsilon=config.layer_norm_epsilon, dtype=dtype, rngs=rngs)
        self.blocks = blocks.stack(
            config.depth, lambda: BertBlock(config, dtype=dtype, adapters=adapters, rngs=rngs)
        )

    def __call__(
        self, tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"] | None = None
    ) -> Float[Array, "batch length features"]:
        """Encode token ids.

        Args:
            tokens: (B, L).
            mask: (B, L), True on real tokens; by default every token that is not `config.pad_token`.

        Returns:
            (B, L, width) states; those on padding mean nothing.

        Raises:
            ValueError: L is longer than the position table.
        """
        length = tokens.shape[1]
        if length > self.config.max_positions:
            raise ValueError(
                f"{length} tokens, but this text tower knows {self.config.max_positions} positions:"
                " shorten the token length or choose a tower with more"
            )
        mask = tokens != self.config.pad_token if mask is None else mask.astype(bool)
        places = self.positions(jnp.arange(length)) + self.types.embedding[...][0].astype(self.types.dtype)
        states = batch_sharded(self.norm(batch_sharded(self.words(batch_sharded(tokens))) + places))
        return blocks.run(self.blocks, states, mask, remat=self.remat, scan=self.scan)

    def pool(
        self,
        states: Float[Array, "batch length features"],
        tokens: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"],
        how: str,
    ) -> Float[Array, "batch features"]:
        """One vector a text.

        Args:
            states: (B, L, width) from `__call__`.
            tokens: (B, L) ids.
            mask: (B, L), True on real tokens.
            how: "cls" the first token; "mean" the mean over real tokens (0 for a text of padding alone);
                "highest_id" the token with the largest id, the first of equals. CLIP finds its end-of-text
                token so; on BERT's ids it is whichever word stands last in the vocabulary, and some published
                models were trained with it.

        Returns:
            (B, width).

        Raises:
            ValueError: unknown `how`.
        """
        if how == "cls":
            return states[:, 0]
        if how == "highest_id":
            return jnp.take_along_axis(states, tokens.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        if how != "mean":
            raise ValueError(f"pooling {how!r} is unknown: use 'cls', 'mean' or 'highest_id'")
        share = mask.astype(jnp.float32)
        share = share / jnp.maximum(share.sum(axis=1, keepdims=True), 1.0)
        return jnp.einsum("bl,blw->bw", share, states.astype(jnp.float32)).astype(states.dtype)
