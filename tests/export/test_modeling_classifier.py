"""Classifiers in torch: features, logits and what they predict."""

import jax
import numpy as np
import pytest
import torch

from tests.export.twins import NAMES, assert_same, compiled, made_volumes, twins

CASES = {
    "findings, linear": {},
    "some findings, mlp on asap": {
        "features": "asap",
        "head": {"layers": "mlp", "hidden": 7},
        "target": {"findings": NAMES[1:3]},
    },
    "classes": {"target": {"task": "multi_class", "findings": NAMES[:3]}},
    "grades": {"target": {"task": "multi_class", "measurement": "grade", "edges": (1.0, 2.5)}},
    "ordinal": {"target": {"task": "ordinal", "measurement": "grade", "edges": (1.0, 2.0, 3.5)}},
    "one cut": {"target": {"task": "ordinal", "measurement": "grade", "edges": (1.0,)}},
    "hazards": {"target": {"task": "hazards", "time": "months", "event": "event", "horizons": (1.0, 6.0)}},
    "cox, resnet": {
        "vision": {"kind": "resnet"},
        "features": "asap",
        "target": {"task": "cox", "time": "months", "event": "event"},
    },
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_classifier(changes):
    objective, twin = twins("supervised", **changes)
    volumes = torch.from_numpy(made_volumes(3))

    def told(objective, volumes):
        inputs = {"volume": volumes}
        return objective.pool_volumes(inputs), objective.embed_volumes(inputs).mean, objective.predict(inputs)

    pooled, embedded, predicted = compiled(objective, told, volumes)
    with torch.no_grad():
        assert_same(twin.features(volumes), pooled)
        assert_same(twin.embed_volumes(volumes).mean, embedded)
    rows = twin.predict(volumes)
    assert tuple(rows[0]) == objective.predicts == tuple(twin.predicts)
    assert_same(torch.tensor([list(row.values()) for row in rows]), predicted)
    assert np.ptp(jax.device_get(predicted)) > 1e-3
