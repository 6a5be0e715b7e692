"""The vectors of a frozen text encoder, computed once for all texts that a run can show."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from medclip_jax import objectives
from medclip_jax.draws import possible_texts
from medclip_jax.parameters import flatten, merge, split, statistics
from medclip_jax.progress import track, track_each
from medclip_jax.text_vectors import TextVectors, text_key, write_text_vectors
from medclip_jax.training.data import check_expectation, open_data
from medclip_jax.training.settle import settle
from medclip_jax.weights.pretrained import TEXT_ENCODER

ENCODED_AT_ONCE = 64
"""Texts."""


class Cached(NamedTuple):
    """What was written.

    Attributes:
        texts: distinct ones, after they were cut to the run's text length.
        records: of the training split.
        width: numbers of a vector.
        nbytes: of all vectors.
    """

    texts: int
    records: int
    width: int
    nbytes: int


def cache_texts(config: Any, out: str | Path, *, progress: bool = True) -> Cached:
    """Encode every text that the training split can show, by the text encoder that a fresh run starts with.

    Args:
        config: of the run, with `objective.cached_texts`.
        out: folder to write.
        progress: whether to draw bars.

    Raises:
        ValueError: a config whose texts are no finite list or whose text encoder learns, or data that do not
            fit it; the message says what to change.
    """
    from medclip_jax.training.start import Beginning, with_weights

    if not config.objective.get("cached_texts"):
        raise ValueError(
            "config.objective.cached_texts is False: this run encodes its texts itself. Set it to True (an "
            "option of the objectives clip and cardiac_clip)"
        )
    data = open_data(config.data, ("tokens",))
    check_expectation(config.data, data.spec, getattr(data.source, "info", None))
    config = settle(config, data.spec, len(data.source))
    found: set[str] = set()
    for index in track_each(
        range(len(data.source)), total=len(data.source), unit="record", label="texts", show=progress
    ):
        found |= possible_texts(data.source[index], config.data.text, config.data.most_statements)

    objective = objectives.create(config.objective, data.spec, rngs=nnx.Rngs(config.seed))
    graphdef, *drawn = split(objective)
    beginning = Beginning.WEIGHTS if config.initial_weights.workdir else Beginning.SCRATCH
    params, variables = with_weights(config, data, drawn, statistics(graphdef, *drawn), beginning)
    encoder = encoder_hash(params, config.objective.text)

    rows = {}
    texts, length = sorted(found), config.data.text_length
    for start in range(0, len(texts), 4096):
        for row in data.tokenizer(texts[start : start + 4096], length):
            rows[text_key(row)] = row
    keys, tokens = list(rows), np.array(list(rows.values()), np.int32)

    @jax.jit
    def encode(params: Any, variables: Any, tokens: Array) -> Array:
        return merge(graphdef, params, variables).text(tokens).astype(np.float32)

    vectors = []
    with track(total=len(tokens), unit="text", label="encoding", show=progress) as shown:
        for start in range(0, len(tokens), ENCODED_AT_ONCE):
            part = tokens[start : start + ENCODED_AT_ONCE]
            filled = np.resize(part, (ENCODED_AT_ONCE, length))
            vectors.append(np.asarray(encode(params, variables, filled))[: len(part)])
            shown.update(len(part))
    whole = np.concatenate(vectors)
    settings = {"encoder": encoder, "tokenizer": data.tokenizer.fingerprint, "text_length": length}
    write_text_vectors(out, keys, whole, settings)
    return Cached(len(keys), len(data.source), whole.shape[1], whole.nbytes)


def encoder_hash(params: Mapping[str, Any], text: Any) -> str:
    """What a text encoder computes, in one word: its weights, its pooling and its compute type.

    Args:
        params: of the objective.
        text: `config.objective.text`.
    """
    found = hashlib.sha256(f"{text.pooling} {text.dtype}".encode())
    for name, value in sorted(flatten(params).items()):
        if name.startswith(TEXT_ENCODER):
            found.update(name.encode())
            found.update(np.ascontiguousarray(value, np.float32).tobytes())
    return found.hexdigest()


def check_cached(config: Any, params: Mapping[str, Any], trained: Collection[str]) -> None:
    """See that a run's text vectors are those of its text encoder, and that this one stays as it is.

    Args:
        config: of the run.
        params: with which it starts.
        trained: names of the parameters that learn.

    Raises:
        ValueError: they are not, or it learns.
    """
    learning = [name for name in trained if name.startswith(TEXT_ENCODER)]
    if learning:
        raise ValueError(
            f"config.objective.cached_texts=True, but {learning[0]} learns, and vectors would be out of date "
            f"after a step: freeze the encoder, config.optimizer.frozen=(r'^{TEXT_ENCODER}',), without "
            "adapters, or set cached_texts to False"
        )
    folder = config.data.text_vectors.folder
    vectors = TextVectors(folder)
    if vectors.settings.get("encoder") != encoder_hash(params, config.objective.text):
        raise ValueError(
            f"the text vectors in {folder} are of another encoder, pooling or compute type than this run's: "
            "run `medclip cache-text` with this config and these overrides"
        )
    logging.info("%d text vectors from config.data.text_vectors.folder, %s", len(vectors), folder)
