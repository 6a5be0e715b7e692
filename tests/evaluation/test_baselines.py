"""The ten-statistics baseline on volumes of known brightness."""

import numpy as np

from medclip_jax.evaluation.baselines import intensity_statistics, statistics_baseline


def test_statistics_of_a_known_volume():
    volume = np.arange(1001, dtype=np.int16).reshape(7, 11, 13)
    np.testing.assert_allclose(
        intensity_statistics(volume), [500, np.arange(1001).std(), 10, 50, 250, 500, 750, 950, 990, 999]
    )


def test_baseline_finds_brightness_ignores_unknown_labels_and_says_nan_for_one_class():
    random = np.random.default_rng(1)

    def records(count):
        for index in range(count):
            bright = index % 2 == 1
            volume = random.normal(100 if bright else 0, 50, (4, 4, 4)).astype(np.int16)
            # Column 1 would be misleading if its unknown entries counted; column 2 has one class.
            yield {"volume": volume, "labels": np.array([1 if bright else -1, 0 if index % 3 else 1, 1])}

    found = statistics_baseline(records(60), records(30), ["bright", "one_known_class", "constant"])
    assert found["bright"] > 0.99
    assert np.isnan(found["one_known_class"])
    assert np.isnan(found["constant"])
