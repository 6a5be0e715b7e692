"""The beating heart: what is measured in its pictures is what the measurements say, and motion is needed."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medclip_jax.corpora.cine import DIAGNOSES, FINDINGS, PRESETS, CineSettings, generate
from medclip_jax.corpora.cine.drawing import draw
from medclip_jax.corpora.cine.generate import label, measure
from medclip_jax.corpora.cine.heart import Beat
from medclip_jax.corpora.cine.patient import LIMITS, draw_patient
from medclip_jax.corpora.cine.planes import Setup, short_axis
from medclip_jax.corpora.cine.scanner import LATE
from medclip_jax.corpora.cine.section import Section, heart_window
from medclip_jax.corpora.cmr import SERIES

ENDS = np.array([0.0, 1.0])
"""Contraction at end diastole and end systole."""

PIXEL, STEP = 1.5, 3.0


def patient_with(number=0, **chances):
    """A patient with these findings and no others, or with a diagnosis."""
    shares = {name: chances.pop(name) for name in DIAGNOSES if name in chances}
    settings = CineSettings(diagnoses=shares, prevalences=dict.fromkeys(FINDINGS, 0.0) | chances)
    return draw_patient(np.random.default_rng(number), settings)


@pytest.fixture(
    scope="module",
    params=[
        {},
        {"regional_wall_motion_abnormality": 1.0, "late_gadolinium_enhancement": 1.0},
        {"left_ventricular_dysfunction": 1.0, "right_ventricular_dysfunction": 1.0},
        {"left_ventricular_dilation": 1.0, "right_ventricular_dilation": 1.0},
        *({name: 1.0} for name in DIAGNOSES),
    ],
    ids=lambda chances: "+".join(chances) or "normal",
)
def patient(request):
    return patient_with(3, **request.param)


@pytest.fixture(scope="module")
def stack(patient):
    """Sections through the whole left ventricle, and how much of each lies before the base at both ends."""
    levels = np.arange(0.5 * STEP, 1.25 * patient.heart.length, STEP)
    bases = patient.heart.length * patient.heart.stretch(ENDS)
    before = np.clip((bases - levels[:, None]) / STEP + 0.5, 0, 1)
    sections = [Section(short_axis(z, Setup(PIXEL, 128, 0.3, (-14.0, 2.0))), patient) for z in levels]
    return sections, before


def volumes(stack, outer, inner=None):
    """ml inside an outline and outside another, at both ends."""
    total = np.zeros(2)
    for section, before in zip(*stack, strict=True):
        outlines = section.outlines(ENDS)
        share = section.covered(getattr(outlines, outer))
        if inner is not None:
            share = share - section.covered(getattr(outlines, inner))
        total += before * share.sum((1, 2)) * PIXEL**2 * STEP / 1000
    return total


def test_ejection_fractions_are_those_of_the_masks(patient, stack):
    truth = measure(patient)
    full, empty = volumes(stack, "cavity")
    assert 100 * (1 - empty / full) == pytest.approx(truth["lv_ejection_fraction"], abs=1.5)
    assert full == pytest.approx(truth["lv_end_diastolic_volume_ml"], rel=0.04)
    full, empty = volumes(stack, "right", "wall")
    assert 100 * (1 - empty / full) == pytest.approx(truth["rv_ejection_fraction"], abs=2.0)
    assert full == pytest.approx(truth["rv_end_diastolic_volume_ml"], rel=0.04)


def test_the_window_holds_the_complete_heart(patient, stack):
    for section in stack[0]:
        if section.plane.center[2] > 0.9 * patient.heart.length:
            continue
        rows, columns = heart_window(section.plane, patient)
        fat = section.covered(section.outlines(np.linspace(0, 1, 4)).fat)
        assert fat[0, rows, columns].size < 0.7 * fat[0].size
        fat[:, rows, columns] = 0
        assert fat.max() == 0


def test_muscle_keeps_its_volume(patient, stack):
    diastole, systole = volumes(stack, "wall", "cavity")
    assert systole == pytest.approx(diastole, rel=0.02)
    assert diastole == pytest.approx(patient.heart.muscle_volume(), rel=0.04)


def test_diameter_and_thickness_are_those_of_the_masks(patient):
    heart, truth = patient.heart, measure(patient)
    widest = heart.length * heart.stretch(0.0) * (heart.tip + (1 - heart.tip) * 0.62)
    thickest = 0.0
    for level in np.linspace(0.25, 0.88, 12) * heart.length * heart.stretch(0.0):
        section = Section(short_axis(level, Setup(1.0, 160)), patient)
        outlines = section.outlines(np.zeros(1))
        wall = section.covered(outlines.wall)[0] - section.covered(outlines.cavity)[0]
        sector = np.floor((section.theta + np.pi) / (np.pi / 12)).astype(int)
        for turn in range(24):
            # Area of a sector between two radii, solved for their difference.
            inside = section.covered(outlines.cavity)[0][sector == turn].sum()
            area = wall[sector == turn].sum()
            inner, outer = (np.sqrt(2 * a / (np.pi / 12)) for a in (inside, inside + area))
            thickest = max(thickest, outer - inner)
    assert thickest == pytest.approx(truth["wall_thickness_mm"], rel=0.1)
    section = Section(short_axis(widest, Setup(1.0, 160)), patient)
    area = section.covered(section.outlines(np.zeros(1)).cavity).sum()
    assert 2 * np.sqrt(area / np.pi) == pytest.approx(truth["lv_end_diastolic_diameter_mm"], rel=0.03)


def test_scar_percent_is_that_of_the_pictures(patient, stack):
    """What brightens where scar shows, over the wall."""
    scarred, wall, nothing = 0.0, 0.0, np.zeros((128, 128), np.float32)
    for section, before in zip(*stack, strict=True):
        pictures = [
            draw(nothing, section.plane, patient, ENDS[:1], LATE, enhanced=shown)[0]
            for shown in (True, False)
        ]
        outlines = section.outlines(ENDS[:1])
        scarred += before[0] * (pictures[0] - pictures[1]).sum() / (LATE["scar"] - LATE["muscle"])
        wall += before[0] * (section.covered(outlines.wall) - section.covered(outlines.cavity)).sum()
    assert 100 * scarred / wall == pytest.approx(measure(patient)["scar_percent"], rel=0.12, abs=0.2)


def test_contraction_has_a_realistic_course():
    beat = Beat(systole=0.35, filling=0.2, plateau=0.25)
    course = beat.contraction(np.linspace(0, 1, 1001))
    assert course.min() == 0
    assert course.max() == 1
    assert np.argmax(course) == 350
    assert course[-1] == pytest.approx(0, abs=1e-9)
    assert np.abs(np.diff(course)).max() < 0.02  # no jump
    np.testing.assert_allclose(course[560:850], 0.25, atol=0.03)  # rests before the atria contract


def test_the_part_that_does_not_move_does_not_thicken():
    patient = patient_with(1, regional_wall_motion_abnormality=1.0)
    heart = patient.heart
    inner = heart.left_gain(np.array([heart.still.angle, heart.still.angle + np.pi]), np.array(0.5))
    assert inner[0] < 0.1 * inner[1]
    assert patient_with(1).heart.still is None


def test_no_single_frame_shows_dysfunction():
    """Twelve frames of one slice: their spread tells weak hearts from others, the first frame does not."""
    settings = replace(PRESETS["independent"], slices=1, size=24, phases=12, series=("cine_sa",))
    first, areas, spread, weak = [], [], [], []
    for index in range(400):
        study = generate(7, index, settings=settings)
        frames = study.series["cine_sa"].voxels[:, :, 0].astype(np.float32)
        frames /= np.percentile(frames, 99)
        first.append(frames[..., 0].ravel())
        areas.append(_areas(study.patient))
        spread.append(frames.std(axis=-1).ravel())
        weak.append(study.labels["left_ventricular_dysfunction"] == 1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))

    def auroc(features, *before):
        scores = cross_val_predict(
            make_pipeline(*before, model), np.stack(features), weak, cv=4, method="predict_proba"
        )
        return roc_auc_score(weak, scores[:, 1])

    assert 0.38 < auroc(first, PCA(20, random_state=0)) < 0.62
    assert 0.38 < auroc(areas) < 0.62
    assert auroc(spread, PCA(20, random_state=0)) > 0.9


def _areas(patient):
    """Cavity, wall and right ventricle in the first frame, as an expert would outline them."""
    section = Section(short_axis(0.5 * patient.heart.length, Setup(4.0, 32, middle=(-14.0, 2.0))), patient)
    outlines = section.outlines(patient.heart.beat.frames(12)[:1])
    areas = [section.covered(getattr(outlines, name)).sum() for name in ("cavity", "wall", "right")]
    logs = np.log(np.diff([0.0, *areas]) + 1)
    return np.concatenate([logs, np.outer(logs, logs)[np.triu_indices(3)]])


def test_the_first_frame_is_anywhere_in_the_cycle():
    patients = [draw_patient(np.random.default_rng(index), TINY) for index in range(200)]
    starts = [patient.heart.beat.start for patient in patients]
    assert np.histogram(starts, 4, (0, 1))[0].min() > 30


TINY = CineSettings(size=16, slices=1, phases=4, lge_slices=1)


def test_labels_follow_from_measurements_and_nobody_is_close_to_a_limit():
    for index in range(300):
        settings = PRESETS["demo" if index % 2 else "independent"]
        patient = draw_patient(np.random.default_rng(index), settings)
        measured = measure(patient)
        for name, limit in LIMITS.items():
            if name != "scar_percent":
                assert abs(measured[name] / limit - 1) > 0.015, (index, name, measured[name])
        labels = label(patient, measured)
        assert set(labels) == {*FINDINGS, *DIAGNOSES}
        assert (labels["late_gadolinium_enhancement"] == 1) == (patient.scar is not None)
        assert (labels["left_ventricular_hypertrophy"] == 1) == bool(patient.hypertrophy)
        assert sum(labels[name] == 1 for name in DIAGNOSES) == bool(patient.diagnosis)


def test_prevalences():
    count = 1200
    settings = PRESETS["independent"]
    patients = [draw_patient(np.random.default_rng(index), settings) for index in range(count)]
    table = np.array([list(label(p, measure(p)).values()) for p in patients]) == 1
    np.testing.assert_allclose(table[:, : len(FINDINGS)].mean(0), 0.35, atol=0.04)
    assert not table[:, len(FINDINGS) :].any()
    # Independent of each other.
    correlation = np.corrcoef(table[:, : len(FINDINGS)].T)
    assert np.abs(correlation - np.eye(len(FINDINGS))).max() < 0.1
    patients = [draw_patient(np.random.default_rng(index), CineSettings()) for index in range(count)]
    for name in DIAGNOSES:
        assert np.mean([p.diagnosis == name for p in patients]) == pytest.approx(0.15, abs=0.03)


def test_diagnoses_look_as_they_should():
    def many(name):
        patients = [patient_with(number, **{name: 1.0}) for number in range(60)]
        return patients, [label(patient, measure(patient)) for patient in patients]

    patients, labels = many("hypertrophic_cardiomyopathy")
    assert all(row["left_ventricular_hypertrophy"] == 1 for row in labels)
    assert all(row["left_ventricular_dysfunction"] == -1 for row in labels)
    assert {patient.scar.kind for patient in patients if patient.scar} == {"patchy"}
    patients, labels = many("ischemic_cardiomyopathy")
    assert all(patient.scar.territory == patient.territory != "" for patient in patients)
    assert all(row["regional_wall_motion_abnormality"] == 1 for row in labels)
    assert np.mean([row["left_ventricular_dysfunction"] == 1 for row in labels]) > 0.7
    patients, labels = many("nonischemic_cardiomyopathy")
    assert all(row["left_ventricular_dilation"] == row["left_ventricular_dysfunction"] == 1 for row in labels)
    assert not any(patient.scar.territory for patient in patients if patient.scar)
    patients, labels = many("cardiac_amyloidosis")
    assert {patient.scar.kind for patient in patients} == {"diffuse"}
    assert {patient.hypertrophy for patient in patients} == {"concentric"}
    assert np.mean([row["pericardial_effusion"] == 1 for row in labels]) > 0.4


def test_a_study_is_a_pure_function_of_its_numbers():
    first, again = (generate(5, 3, settings=TINY) for _ in range(2))
    for name, picture in first.series.items():
        np.testing.assert_array_equal(picture.voxels, again.series[name].voxels)
    assert first.impression == again.impression
    assert first.measurements == again.measurements
    other = generate(5, 4, settings=TINY)
    assert other.measurements != first.measurements


def test_a_higher_prevalence_changes_no_other_number():
    plain, more = patient_with(8), patient_with(8, aortic_dilation=1.0, pericardial_effusion=1.0)
    assert plain.heart == more.heart
    assert plain.root_mm < 40 < more.root_mm


def test_series_have_their_shapes():
    settings = replace(TINY, series=SERIES, slices=2, lge_slices=3)
    series = generate(0, 0, settings=settings).series
    assert list(series) == list(SERIES)
    shapes = {name: picture.voxels.shape for name, picture in series.items()}
    assert shapes["cine_sa"] == (16, 16, 2, 4)
    assert shapes["cine_lax"] == (16, 16, 1, 4)
    assert shapes["lge_sa"] == (16, 16, 3)
    assert {shapes[name] for name in SERIES[3:]} == {(16, 16, 1)}


def test_affines_place_the_same_point_of_the_heart_alike():
    """A short-axis pixel and a long-axis pixel at the same millimeters show the same tissue."""
    settings = CineSettings(size=96, slices=9, phases=1, series=SERIES, noise=(0.0, 0.0))
    study = generate(1, 2, settings=settings)
    stack, long = study.series["cine_sa"], study.series["cine_lax"]
    for picture in study.series.values():
        columns = picture.affine[:3, :3]
        scaled = columns / np.linalg.norm(columns, axis=0)
        np.testing.assert_allclose(scaled.T @ scaled, np.eye(3), atol=1e-5)
    # All long-axis pixels between the first and last slice of the stack.
    index = np.indices(long.voxels.shape[:3]).reshape(3, -1)
    world = long.affine[:3, :3] @ index + long.affine[:3, 3:]
    place = np.linalg.solve(stack.affine[:3, :3], world - stack.affine[:3, 3:])
    near = np.rint(place).astype(int)
    shape = np.array(stack.voxels.shape[:3])[:, None]
    good = ((near >= 0) & (near < shape)).all(0) & (np.abs(place[2] - near[2]) < 0.1)
    here = long.voxels.reshape(-1)[good].astype(float)
    there = stack.voxels[..., 0][tuple(near[:, good])].astype(float)
    heart = _within(world[:, good], stack, study.patient)
    assert heart.sum() > 300
    assert np.corrcoef(here[heart], there[heart])[0, 1] > 0.8


def _within(world, stack, patient):
    """Pixels near the left ventricle: the background is not one volume."""
    middle = stack.affine[:3, :3] @ (np.array(stack.voxels.shape[:3]) / 2 - 0.5) + stack.affine[:3, 3]
    normal = stack.affine[:3, 2] / np.linalg.norm(stack.affine[:3, 2])
    across = world - middle[:, None]
    across = across - normal[:, None] * (normal @ across)
    return np.linalg.norm(across, axis=0) < patient.heart.radius + patient.heart.wall + 10


def test_settings_say_what_is_wrong():
    with pytest.raises(ValueError, match="add \\['left_ventricular_dysfunction'"):
        CineSettings(prevalences={name: 0.1 for name in FINDINGS[1:]})
    with pytest.raises(ValueError, match="add up to 1"):
        CineSettings(diagnoses={"hypertrophic_cardiomyopathy": 0.6, "cardiac_amyloidosis": 0.6})
    with pytest.raises(ValueError, match="one or more of"):
        CineSettings(series=("cine",))
    with pytest.raises(ValueError, match="slices=0"):
        CineSettings(slices=0)
