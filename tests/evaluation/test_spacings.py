"""In how many mm a volume of an evaluation is drawn."""

import numpy as np

from medclip_jax.evaluation.spacings import spacing_of_records
from medclip_jax.objectives.base import DataSpec


def test_of_the_set_or_of_each_resized_scan():
    opened = []

    def open_records(arrays):
        opened.append(tuple(arrays))
        return [{"volume_spacing": np.array([n, 1.5, 0.5], np.float32)} for n in (2, 4)], ()

    assert spacing_of_records(DataSpec((8, 8, 8), (3.0, 1.0, 1.0)), open_records)(1) == (3.0, 1.0, 1.0)
    assert not opened
    spacing_of = spacing_of_records(DataSpec((8, 8, 8), (None, None, None)), open_records)
    assert (spacing_of(0), spacing_of(1)) == ((2.0, 1.5, 0.5), (4.0, 1.5, 0.5))
    assert opened == [("volume_spacing",)]
