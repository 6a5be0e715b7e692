"""Exported T3D models: towers, and crops that read reports, against the JAX model on the same weights."""

import numpy as np
import pytest
import torch

from medclip_jax.objectives.t3d import T3d
from tests.export.twins import assert_same, compiled, made_tokens, made_volumes, spec_of, twins

SHAPE = (9, 21, 14)


def view_vectors(objective: T3d, crops, tokens):
    states, mask, _ = objective._read(tokens)
    seen = objective.vision.encode(objective.vision.to_voxels(crops)).tokens
    objective.views = 1
    return objective._view_vectors(seen, states, mask)[:, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "vision": {"norm": "group", "width": 16, "stem_stride": (1, 1, 1)},
            "similarity": "dot",
            "centered": True,
        },
        {"vision": {"depth": 50, "width": 2}, "text": {"width": 12}},
        {"vision": {"pooling": "extremes"}},
    ],
)
def test_vectors_agree(changes):
    objective, twin = twins("t3d", spec_of(SHAPE), **changes)
    volumes, tokens = made_volumes(3, SHAPE), made_tokens(3, 12)
    with torch.no_grad():
        assert_same(
            twin.embed_volumes(torch.from_numpy(volumes)).mean,
            compiled(objective, lambda o, v: o.embed_volumes({"volume": v}).mean, volumes),
        )
        assert_same(
            twin.embed_texts(torch.from_numpy(tokens)).mean,
            compiled(objective, lambda o, t: o.embed_texts(t).mean, tokens),
        )
        crops = made_volumes(3, (5, 10, 7), seed=4)
        found = twin.view_vectors(torch.from_numpy(crops), torch.from_numpy(tokens))
        want = np.asarray(compiled(objective, view_vectors, crops, tokens))
        scale = np.abs(want).max()
        assert_same(found / scale, want / scale)
        logits = twin(torch.from_numpy(volumes), torch.from_numpy(tokens)).logits
        cosines = (
            twin.embed_volumes(torch.from_numpy(volumes)).mean
            @ twin.embed_texts(torch.from_numpy(tokens)).mean.T
        )
        torch.testing.assert_close(logits, cosines / 0.07)


def test_without_views_there_are_no_vectors_of_crops():
    _, twin = twins("t3d", spec_of(SHAPE), weights={"contrast": 1.0, "views": 0.0})
    with pytest.raises(ValueError, match="trained without views"):
        twin.view_vectors(torch.zeros(1, 5, 10, 7), torch.zeros(1, 4, dtype=torch.long))
