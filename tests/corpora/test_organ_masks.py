"""Masks in the layouts that segmentation tools leave behind."""

import json

import nibabel
import numpy as np
import pytest

from medclip_jax.corpora.folder import TableError, folder
from medclip_jax.corpora.organ_masks import header_classes


def save(path, labels, names=None, comment=None):
    """A label map, with names in its extended header as TotalSegmentator writes them."""
    image = nibabel.Nifti1Image(labels, np.diag([2.0, 2.0, 3.0, 1.0]))
    if comment:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", comment.encode()))
    if names:
        entries = "".join(
            f'<Label Key="{value}" Red="1.0" Green="0.0" Blue="0.5" Alpha="1"><![CDATA[{name}]]></Label>\n'
            for value, name in names.items()
        )
        text = (
            '<?xml version="1.0" encoding="UTF-8"?> <CaretExtension> <VolumeInformation Index="0"> '
            f"<LabelTable>\n{entries}\n</LabelTable> </VolumeInformation></CaretExtension>\n   "
        )
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, text.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def studies(tmp_path, organs, **more):
    columns = ["volume", "report", "organs", *more]
    cells = ["a.nii.gz", "r", organs, *more.values()]
    (tmp_path / "studies.tsv").write_text("\t".join(columns) + "\n" + "\t".join(cells) + "\n")
    return list(folder(tmp_path / "studies.tsv"))


LABELS = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
NAMES = {1: "spleen", 6: "lung_upper_lobe_left", 7: "heart & aorta"}


def test_names_in_the_header(tmp_path):
    save(tmp_path / "ml.nii.gz", LABELS, NAMES, comment="made by hand")
    (study,) = studies(tmp_path, "ml.nii.gz")
    assert study.organs == {"*": tmp_path / "ml.nii.gz"}
    assert study.organ_classes == NAMES
    # A column overrules the header.
    (study,) = studies(tmp_path, "ml.nii.gz", organ_classes='{"6": "heart"}')
    assert study.organ_classes == {6: "heart"}


def test_names_outside_of_cdata_and_background(tmp_path):
    image = nibabel.Nifti1Image(LABELS, np.diag([2.0, 2.0, 3.0, 1.0]))
    text = (
        '<LabelTable><Label Key="0">???</Label><Label Red="1" Key="2" Alpha="1"> liver </Label></LabelTable>'
    )
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, text.encode()))
    nibabel.save(image, tmp_path / "ml.nii")
    assert header_classes(tmp_path / "ml.nii") == {2: "liver"}


@pytest.mark.parametrize(
    "written",
    [
        {"1": "heart", "2": "aorta"},
        {"heart": 1, "aorta": 2, "background": 0},
        {"labels": {"heart": 1, "aorta": 2}},
    ],
)
def test_names_in_a_file_beside(tmp_path, written):
    save(tmp_path / "seg/ml.nii.gz", LABELS)
    (tmp_path / "seg/ml.json").write_text(json.dumps(written))
    (study,) = studies(tmp_path, "seg/ml.nii.gz")
    assert study.organ_classes == {1: "heart", 2: "aorta"}


def test_no_names_anywhere(tmp_path):
    save(tmp_path / "ml.nii.gz", LABELS)
    with pytest.raises(TableError, match=r"row 1 .*'organs': .*needs the column organ_classes.*NAME\.json"):
        studies(tmp_path, "ml.nii.gz")
    (tmp_path / "ml.json").write_text("[1, 2]")
    with pytest.raises(TableError, match=r"row 1 .*'organs': must be JSON such as"):
        studies(tmp_path, "ml.nii.gz")


def test_a_damaged_file_is_left_to_the_preparation_of_its_volume(tmp_path):
    save(tmp_path / "ml.nii.gz", LABELS, NAMES)
    whole = (tmp_path / "ml.nii.gz").read_bytes()
    (tmp_path / "ml.nii.gz").write_bytes(whole[:40])
    (study,) = studies(tmp_path, "ml.nii.gz")
    assert study.organs == {"*": tmp_path / "ml.nii.gz"}
    assert study.organ_classes == {}


def test_a_folder_of_one_file_for_each_class(tmp_path):
    """TotalSegmentator's output with what else it writes, and RadGenome-ChestCT's with spaces in names."""
    for name in ("heart.nii.gz", "lung_upper_lobe_left.nii.gz", "._heart.nii.gz"):
        save(tmp_path / "seg" / name, LABELS)
    (tmp_path / "seg/statistics.json").write_text("{}")
    (tmp_path / "seg/preview_total.png").touch()
    (study,) = studies(tmp_path, "seg")
    assert list(study.organs) == ["heart", "lung_upper_lobe_left"]
    save(tmp_path / "train_region_mask/seg_train_1_a_1/left lung lower lobe.nii.gz", LABELS)
    (study,) = studies(tmp_path, "train_region_mask/seg_train_1_a_1")
    assert list(study.organs) == ["left lung lower lobe"]
