"""Segmentation in torch: logits of crops, and the labels and vectors of volumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.export.twins import SHAPE, assert_same, compiled, made_volumes, make_model, small, spec_of, twin_of

CLASSES = ("liver", "spleen", "heart")
CASES = {
    "UNETR, resized": (SHAPE, (6, 10, 8), {}),
    "UNETR, doubled": ((12, 20, 16), (8, 16, 8), {"vision": {"patch": (4, 4, 4)}}),
    "UNETR on cells": (
        SHAPE,
        (),
        {"vision": {"patch": (3, 2, 2), "cell": (1, 2, 3), "windows": ((-1000.0, 0.0), (-150.0, 250.0))}},
    ),
    "U-Net": (
        (18, 17, 21),
        (18, 17, 17),
        {"vision": {"kind": "resnet", "stem_size": (3, 3, 3), "stem_stride": (1, 1, 1), "norm": "group"}},
    ),
}


@pytest.mark.parametrize(("shape", "crop", "changes"), CASES.values(), ids=CASES)
def test_segmenter(shape, crop, changes):
    config = small("segment", feature_size=2, **changes)
    config.crops.shape = crop
    model = make_model(config, replace(spec_of(shape), label_classes=CLASSES))
    twin, volumes = twin_of(model), made_volumes(2, shape)
    assert tuple(twin.classes) == CLASSES
    crops = volumes[tuple(slice(size) for size in (2, *(crop or shape)))]
    logits, pooled = compiled(
        model.objective,
        lambda objective, crops, volumes: (
            objective.segment({"volume": crops}),
            objective.embed_volumes({"volume": volumes}).mean,
        ),
        crops,
        volumes,
    )
    assert np.ptp(np.asarray(logits), axis=-1).min() > 1e-3
    with torch.no_grad():
        assert_same(twin.logits(torch.from_numpy(crops)), logits, 2e-5)
        assert_same(twin.embed_volumes(volumes).mean, pooled)
    labels = twin.segment(volumes, overlap=0.5).numpy()
    expected = [model.segment(volume, overlap=0.5).labels for volume in volumes]
    # Where two classes are equal but for rounding, either may win.
    assert (labels == np.stack(expected)).mean() > 0.999
    assert len(np.unique(labels)) > 1


def test_overlap_is_a_share():
    config = small("segment", feature_size=2)
    config.crops.shape = ()
    twin = twin_of(make_model(config, replace(spec_of(), label_classes=CLASSES)))
    with pytest.raises(ValueError, match="0 or more and below 1"):
        twin.segment(made_volumes(1), overlap=1.0)
