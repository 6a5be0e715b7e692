"""No name, id, date or institution leaves a file: not in provenance, notes, messages, tracebacks or logs."""

import traceback

import numpy as np
import pytest
import SimpleITK as sitk
from made_scans import SECRETS, chest, compress, lps_stack, write_enhanced, write_nifti, write_slices

from medclip_jax.volumes import VolumeRejected, read_volume

NAME = "DOE_JANE_PAT77421_19561231"


def told(path, **arguments) -> str:
    """Everything that reading a file says, whether it succeeds or not."""
    try:
        volume = read_volume(path, **arguments)
        return repr((dict(volume.provenance), volume.notes))
    except VolumeRejected as error:
        return "".join(traceback.format_exception(error)) + error.code


@pytest.fixture
def quiet(caplog, capfd, recwarn):
    """Fails the test when a log line, a warning or console output holds patient data."""
    caplog.set_level(0)
    yield
    output = capfd.readouterr()
    said = caplog.text + output.out + output.err + " ".join(str(w.message) for w in recwarn)
    assert not [secret for secret in SECRETS if secret in said.upper()]


def check(path, **arguments):
    text = told(path, **arguments)
    assert not [secret for secret in SECRETS if secret in text.upper()], text


def test_dicom(tmp_path, quiet):
    stack = lps_stack(chest())
    folder = tmp_path / NAME
    files = write_slices(folder, stack)
    check(folder)
    check(files[0])
    check(folder, modality="MR")
    compress(files[2], "JPEG2000", (1.0, -1024.0))
    check(folder)
    for file in (files[2], files[3]):
        content = file.read_bytes()
        for keep in (200, 700, len(content) - 100):
            file.write_bytes(content[:keep])
            check(folder)
        file.unlink()
        check(folder)
    path = write_enhanced(tmp_path / f"{NAME}.dcm", stack, [(1.0, -1024.0)] * len(stack), range(len(stack)))
    check(path)
    path.write_bytes(path.read_bytes()[:-500])
    check(path)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(
    "tag", ["Modality", "ImageType", "PhotometricInterpretation", "SeriesInstanceUID", "ConvolutionKernel"]
)
def test_patient_data_in_a_tag_that_is_read(tmp_path, caplog, tag):
    write_slices(tmp_path / NAME, lps_stack(chest()), **{tag: "DOE JANE"})
    caplog.clear()
    check(tmp_path / NAME)
    assert "DOE" not in caplog.text


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha", "mhd"])
def test_other_formats(tmp_path, quiet, ending):
    path = tmp_path / f"{NAME}.{ending}"
    if ending.startswith("nii"):
        write_nifti(path, chest(), descrip=b"DOE JANE 19561231", db_name=b"PAT77421", aux_file=b"JANE")
    else:
        image = sitk.GetImageFromArray(chest())
        image.SetSpacing((1.5, 2.0, 3.0))
        image.SetMetaData("PatientName", "DOE JANE")
        sitk.WriteImage(image, str(path))
    check(path)
    content = path.read_bytes()
    for keep in (0, 100, len(content) - 300):
        path.write_bytes(content[: max(0, keep)])
        check(path)
    path.unlink()
    check(path)


def test_unreadable_by_permission_or_kind(tmp_path, quiet):
    (tmp_path / f"{NAME}.nii").mkdir()
    check(tmp_path / f"{NAME}.nii")
    (tmp_path / f"{NAME}.docx").write_bytes(b"DOE JANE" * 50)
    check(tmp_path / f"{NAME}.docx")


def test_the_net_catches(tmp_path):
    """The secrets really are in the file that the tests above read."""
    files = write_slices(tmp_path, lps_stack(np.zeros((2, 4, 4))))
    content = files[0].read_bytes()
    assert all(secret.encode() in content for secret in SECRETS)
