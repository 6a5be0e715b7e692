"""Crops of DICOM trees around what the table of examinations says: a box, or the mask of an organ."""

import numpy as np

from medclip_jax.cli.main import main
from medclip_jax.shards.read import open_split
from tests.corpora.made_dicom_tree import SHAPE, series, table
from tests.volumes.made_scans import chest, write_nifti

PLACED = np.array([[0, 0, 1.5, -1.5], [0, 2.0, 0, 2.0], [3.0, 0, 0, 100.0], [0, 0, 0, 1]])
"""Index (d, h, w, 1) of a series of `write_slices` to RAS mm."""


def test_by_study_around_a_box_and_an_organ(tmp_path):
    """Every reconstruction of a study has the same center."""
    root = tmp_path / "PACS"
    series(root / "a", 1, 1, 1)
    series(root / "b", 1, 1, 2, ConvolutionKernel="B70f")
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:4, 4:8, 10:16] = 1
    (tmp_path / "masks").mkdir()
    write_nifti(tmp_path / "masks" / "heart.nii.gz", mask, PLACED)
    low, high = PLACED[:3] @ (2, 4, 10, 1), PLACED[:3] @ (3, 7, 15, 1)
    box = " ".join(f"{edge:g}" for pair in zip(low, high, strict=True) for edge in pair)
    row = f"ACC11,Heart size is normal.,{box},masks"
    reports = table(tmp_path / "r.csv", "accession,report,box,organs", row)
    words = ["prepare", "--corpus", "dicom", "--root", str(root), "--table", str(reports)]
    words += [
        "--workers",
        "1",
        "--shape",
        "4",
        "6",
        "6",
        "--spacing",
        "3",
        "2",
        "1.5",
        "--tokenizer",
        "none",
        "--fractions",
        "1",
        "0",
        "0",
    ]
    words += ["--series-rule", "all", "--min-slices", "2"]
    found = []
    for crop in ("box", "heart"):
        assert main([*words, "--crop", crop, "--out", str(tmp_path / crop)]) == 0
        found.append([record["volume"] for record in open_split(tmp_path / crop, "train")])
    assert len(found[0]) == len(found[1]) == 2
    wanted = chest(SHAPE, 111)[1:5, 3:9, 10:16]
    assert any(np.array_equal(volume, wanted) for volume in found[0])
    for volume in found[0]:
        assert any(np.array_equal(volume, other) for other in found[1])
