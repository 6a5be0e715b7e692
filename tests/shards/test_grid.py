"""Are volumes of the kind that a model was trained on?"""

import pytest

from medclip_jax.shards.grid import differences, refuse_other_kind

TRAINED = {"shape": (32, 64, 64), "spacing": (8.0, 5.0, 5.0), "crop": "center", "modality": "CT"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"spacing": (8.001, 5.0, 5.0)}, []),  # what a table rounds
        ({"shape": (48, 96, 96)}, ["shape 48 x 96 x 96 voxels instead of 32 x 64 x 64 voxels"]),
        ({"spacing": (6.0, 4.0, 4.0)}, ["spacing 6 x 4 x 4 mm instead of 8 x 5 x 5 mm"]),
        ({"percentiles": None}, []),
        ({"percentiles": (1.0, 99.0)}, ["percentiles 1 to 99 instead of none"]),
        ({"crop": "heart", "modality": "MR"}, ["crop heart instead of center", "modality MR instead of CT"]),
    ],
)
def test_differences_in_words(change, said):
    assert differences(TRAINED, TRAINED | change) == said
    if not said:
        refuse_other_kind(TRAINED, TRAINED | change, "the volumes")
        return
    with pytest.raises(
        ValueError, match=rf"the volumes are not of .*: {said[0]}.*--spacing 8 5 5.*--other-grid"
    ):
        refuse_other_kind(TRAINED, TRAINED | change, "the volumes")
