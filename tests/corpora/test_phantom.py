"""Phantoms: determinism, geometry, labels against measurements, and what global statistics give away."""

import dataclasses
import pickle

import nibabel
import numpy as np
import pytest
from nibabel.processing import resample_from_to
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medclip_jax.corpora.phantom import (
    FINDINGS,
    ORGAN_CLASSES,
    ORGANS,
    PRESETS,
    PhantomSettings,
    generate,
    roster,
)
from medclip_jax.corpora.phantom.patient import draw_condition

COARSE = PhantomSettings(in_plane_mm=(5.0, 5.5), slice_mm=(7.0, 8.0))
"""Small grids, so that hundreds of phantoms are made in seconds."""
COUNT = 400


def _statistics(voxels):
    """Ten global intensity statistics."""
    values = voxels.astype(np.float32).ravel()
    return [values.mean(), values.std(), *np.percentile(values, [1, 5, 25, 50, 75, 95, 99, 99.9])]


def _around(phantom, organ, side_mm):
    """The voxels of a cube around an organ."""
    spacing = np.linalg.norm(phantom.affine[:3, :3], axis=0)
    center = np.argwhere(phantom.organs == ORGANS[organ]).mean(0)
    low = np.maximum(center - side_mm / 2 / spacing, 0).astype(int)
    high = (center + side_mm / 2 / spacing).astype(int)
    return phantom.voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]


def _canonical(phantom, array):
    """To (S, A, R) order with nibabel, independently of how the phantom was stored."""
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.ascontiguousarray(array), phantom.affine))
    return np.asarray(image.dataobj).transpose(2, 1, 0), image.header.get_zooms()[::-1]


@pytest.fixture(scope="session")
def many():
    """Statistics, labels and report lengths of 400 small phantoms."""
    rows = []
    for index in range(COUNT):
        phantom = generate(11, index, settings=COARSE)
        rows.append(
            {
                "whole": _statistics(phantom.voxels),
                "heart": _statistics(_around(phantom, "heart", 160.0)),
                "labels": [phantom.labels[name] for name in FINDINGS],
                "length": [len(phantom.report)],
                "patient": phantom.patient_id,
                "grade": phantom.measurements["cac_grade"],
                "measurements": dict(phantom.measurements),
                "severities": dict(phantom.severities),
            }
        )
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


@pytest.fixture(scope="module")
def few():
    return [generate(3, index) for index in range(10)]


def _held_out_auroc(features, labels, patients):
    """AUROC of each finding by logistic regression, five folds by patient, unknown labels left out."""
    scores = []
    for column in labels.T:
        known = column != 0
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))
        predicted = cross_val_predict(
            model,
            features[known],
            column[known] > 0,
            cv=GroupKFold(5),
            groups=patients[known],
            method="predict_proba",
        )[:, 1]
        scores.append(roc_auc_score(column[known] > 0, predicted))
    return dict(zip(FINDINGS, scores, strict=True))


@pytest.mark.slow
def test_report_length_tells_no_label(many):
    scores = _held_out_auroc(many["length"].astype(float), many["labels"], many["patient"])
    assert max(scores.values()) < 0.65, scores


@pytest.mark.parametrize("region", ["whole", "heart"])
@pytest.mark.slow
def test_ten_intensity_statistics_tell_little(many, region):
    scores = _held_out_auroc(many[region], many["labels"], many["patient"])
    assert np.mean(list(scores.values())) < 0.75, scores


@pytest.mark.slow
def test_every_finding_is_common_and_every_grade_occurs(many):
    for name, column in zip(FINDINGS, many["labels"].T, strict=True):
        share = np.mean(column[column != 0] == 1)
        assert 0.2 < share < 0.52, (name, share)
    assert set(many["grade"]) == {0, 1, 2, 3, 4}


@pytest.mark.slow
def test_mild_and_severe_both_occur(many):
    for name in FINDINGS:
        severity = np.array([row[name] for row in many["severities"]])
        severity = severity[severity > 0]
        assert severity.min() < 0.35, name
        assert severity.max() > 0.75, name


@pytest.mark.slow
def test_labels_follow_the_measurements(many):
    for labels, m in zip(many["labels"], many["measurements"], strict=True):
        label = dict(zip(FINDINGS, labels, strict=True))
        assert (label["coronary_calcification"] == 1) == (m["agatston_score"] > 0)
        assert (label["cardiomegaly"] == 1) == (m["cardiothoracic_ratio"] > 0.5)
        assert (label["pulmonary_arterial_hypertension"] == 1) == (m["pulmonary_artery_diameter_mm"] > 29.5)
        assert (label["pericardial_effusion"] == 1) == (m["pericardial_effusion_mm"] >= 4.5)
        assert (label["pleural_effusion"] == 1) == (m["pleural_effusion_mm"] > 5)
        assert (label["lung_nodule"] == 1) == (m["lung_nodule_mm"] >= 5)
        if label["coronary_stenosis"]:
            assert (label["coronary_stenosis"] == 1) == (m["coronary_stenosis_fraction"] >= 0.5)
        else:
            assert np.isnan(m["coronary_stenosis_fraction"])
        if 1 in (label["coronary_calcification"], label["aortic_calcification"], label["coronary_stenosis"]):
            assert label["atherosclerosis"] == 1


def test_stenosis_is_not_assessable_without_contrast(few):
    for phantom in few:
        assert (phantom.labels["coronary_stenosis"] == 0) == (not phantom.notes["contrast"])


def test_same_arguments_same_phantom_and_order_does_not_matter():
    first = generate(3, 9, settings=COARSE)
    generate(3, 4, settings=COARSE)
    again = generate(3, 9, settings=COARSE)
    np.testing.assert_array_equal(first.voxels, again.voxels)
    np.testing.assert_array_equal(first.organs, again.organs)
    assert first.report == again.report
    assert first.labels == again.labels
    assert not np.array_equal(first.voxels, generate(4, 9, settings=COARSE).voxels)


def test_reconstructions_share_report_and_lesions_but_not_the_grid():
    assert roster(2)[:2] == roster(3)[:2]
    for index in (2, 18, 34, 50):
        a, b = generate(5, index), generate(5, index + 1)
        assert a.study_id == b.study_id
        assert a.volume_id != b.volume_id
        assert a.report == b.report
        assert a.labels == b.labels
        assert not np.array_equal(a.affine[:3, :3], b.affine[:3, :3])
        # The same anatomy at the same place in the world, once noise and kernel are blurred away.
        first, second = (nibabel.Nifti1Image(p.voxels.astype(np.float32), p.affine) for p in (a, b))
        second = resample_from_to(second, first, order=1, cval=-1024)
        inner = (slice(4, -4),) * 3
        spacing = np.array(first.header.get_zooms())
        cells = [ndimage.gaussian_filter(image.get_fdata(), 5 / spacing)[inner] for image in (first, second)]
        assert np.corrcoef(cells[0].ravel(), cells[1].ravel())[0, 1] > 0.99


def test_roster_numbers_every_volume_once():
    ids = [roster(index) for index in range(160)]
    assert len(set(ids)) == 160
    patients = [patient for patient, _, _ in ids]
    assert sorted(set(patients)) == list(range(140))
    assert sum(study for _, study, _ in ids) == 10


def test_storage_is_consistent_with_the_affine(few):
    assert len({phantom.orientation for phantom in few}) > 3
    for phantom in few:
        assert "".join(nibabel.aff2axcodes(phantom.affine)) == phantom.orientation
        organs, spacing = _canonical(phantom, phantom.organs)
        center = {
            name: np.argwhere(organs == ORGANS[name]).mean(0) * spacing
            for name in ("liver", "spleen", "heart", "trachea", "vertebrae", "sternum")
        }
        assert center["liver"][2] > center["spleen"][2]  # right of
        assert center["trachea"][0] > center["heart"][0] > center["liver"][0]  # above
        assert center["sternum"][1] > center["heart"][1] > center["vertebrae"][1]  # in front of


def test_organs_are_all_there_with_plausible_volumes_and_densities(few):
    liters = {
        "heart": (0.25, 2.5),
        "aorta": (0.08, 0.6),
        "trachea": (0.01, 0.08),
        "coronary_arteries": (0.001, 0.03),
    }
    lobes = [name for name in ORGANS if name.startswith("lung_")]
    assert len(lobes) == 5
    needed = {
        *lobes,
        *liters,
        "esophagus",
        "atrial_appendage_left",
        "pulmonary_artery",
        "vertebrae",
        "ribs",
        "sternum",
        "superior_vena_cava",
        "inferior_vena_cava",
        "pulmonary_vein",
        "spinal_cord",
    }
    for phantom in few:
        voxel = abs(np.linalg.det(phantom.affine[:3, :3])) / 1e6
        present = {ORGAN_CLASSES[value] for value in np.unique(phantom.organs) if value}
        assert needed <= present, needed - present
        for name, (low, high) in liters.items():
            assert low < (phantom.organs == ORGANS[name]).sum() * voxel < high, name
        lungs = np.isin(phantom.organs, [ORGANS[name] for name in lobes])
        assert 1.5 < lungs.sum() * voxel < 10
        assert -960 < np.median(phantom.voxels[lungs]) < -650
        blood = np.median(phantom.voxels[phantom.organs == ORGANS["aorta"]])
        assert (blood > 180) == phantom.notes["contrast"]
        assert ("pleural_effusion" in present) == (phantom.labels["pleural_effusion"] == 1)
        assert ("pericardial_effusion" in present) == (phantom.labels["pericardial_effusion"] == 1)


def test_heart_in_the_label_map_is_as_wide_as_measured(few):
    for phantom in few:
        organs, spacing = _canonical(phantom, phantom.organs)
        heart = organs == ORGANS["heart"]
        pleura = np.isin(organs, [*range(10, 15), ORGANS["pleural_effusion"]])
        wide = (np.ptp(np.nonzero(heart)[2]) + 1) * spacing[2]
        rows = np.unique(np.nonzero(heart)[0])
        # The rib cage's inside is 2 mm beyond the pleural cavity on either side.
        chest = (np.ptp(np.nonzero(pleura[rows])[2]) + 1) * spacing[2] + 4
        # The patient may lie turned by 6 degrees, and surfaces are uneven by a voxel at either end.
        assert abs(wide / chest - phantom.measurements["cardiothoracic_ratio"]) < 0.06


@pytest.mark.parametrize(
    "finding", ["aortic_calcification", "lung_nodule", "consolidation", "coronary_stenosis"]
)
def test_a_lesion_changes_the_voxels_where_it_lies(finding):
    """The same phantom with and without the finding differs, and only in a part of the body."""
    common = dict.fromkeys(FINDINGS, 0.0) | {"atherosclerosis": 1.0}
    base = dataclasses.replace(COARSE, prevalences=common, contrast_probability=1.0, noise_hu=(0.0, 0.0))
    with_it = dataclasses.replace(base, prevalences=common | {finding: 1.0})
    for index in range(3):
        a, b = generate(8, index, settings=base), generate(8, index, settings=with_it)
        assert a.labels[finding] == -1
        assert b.labels[finding] == 1
        changed = (np.abs(a.voxels.astype(int) - b.voxels) > 15).mean()
        assert 0 < changed < 0.1


def test_finer_grids_keep_the_anatomy():
    coarse = generate(3, 6, settings=PRESETS["demo"])
    fine = generate(3, 6, settings=PRESETS["paper"])
    assert fine.voxels.size > 4 * coarse.voxels.size
    for name in ("heart", "aorta", "trachea", "lung_upper_lobe_left", "vertebrae"):
        volumes = [
            (p.organs == ORGANS[name]).sum() * abs(np.linalg.det(p.affine[:3, :3])) for p in (coarse, fine)
        ]
        assert volumes[1] == pytest.approx(volumes[0], rel=0.15), name
    assert fine.report == coarse.report


def test_settings_are_checked_and_picklable():
    assert pickle.loads(pickle.dumps(PRESETS["demo"])) == PRESETS["demo"]
    with pytest.raises(ValueError, match="prevalences must name exactly"):
        PhantomSettings(prevalences={"lung_nodule": 0.5})
    with pytest.raises(ValueError, match="exceeds atherosclerosis"):
        PhantomSettings(prevalences=dict(PhantomSettings().prevalences) | {"coronary_stenosis": 0.9})
    with pytest.raises(ValueError, match="severities="):
        PhantomSettings(severities=(0.5, 0.2))
    with pytest.raises(ValueError, match="nodule_mm="):
        PhantomSettings(nodule_mm=(20, 10))
    with pytest.raises(ValueError, match="more_nodules="):
        PhantomSettings(more_nodules=-1)


def test_severities_are_drawn_from_their_range():
    severe = dataclasses.replace(PRESETS["demo"], severities=(0.6, 0.7))
    found = [draw_condition(np.random.default_rng(i), severe).severities for i in range(50)]
    values = [value for severities in found for value in severities.values()]
    assert len(values) > 50
    assert min(values) >= 0.6
    assert max(values) <= 0.7
    usual = [draw_condition(np.random.default_rng(i), PRESETS["demo"]).severities for i in range(50)]
    # Only how severe a finding is changes, not who has it.
    assert [set(s) for s in found] == [set(s) for s in usual]


def test_nodules_have_the_size_and_number_that_is_set():
    common = dict.fromkeys(FINDINGS, 0.0) | {"lung_nodule": 1.0}
    one = dataclasses.replace(
        COARSE, prevalences=common, noise_hu=(0.0, 0.0), nodule_mm=(18, 20), more_nodules=0
    )
    many = dataclasses.replace(one, more_nodules=6)
    clear = dataclasses.replace(one, prevalences=common | {"lung_nodule": 0.0})
    for index in range(3):
        without, single, several = (generate(8, index, settings=s) for s in (clear, one, many))
        assert 18 <= single.measurements["lung_nodule_mm"] <= 20
        voxel = abs(np.linalg.det(single.affine[:3, :3]))
        # Soft tissue where there was lung: a ball of 18 to 20 mm, or several.
        filled = [((p.voxels.astype(int) - without.voxels) > 300).sum() * voxel for p in (single, several)]
        assert 1000 < filled[0] < 6000
        assert filled[1] > 1.5 * filled[0]
