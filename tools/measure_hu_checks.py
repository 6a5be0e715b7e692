"""How often the check of Hounsfield units errs: volumes that are HU and refused, others that are accepted.

    python tools/measure_hu_checks.py [--real FOLDER] [--crops 40] [--list]

Volumes that are HU: drawn heads, chests and abdomens with 5 to 100 HU of noise, the package's phantoms, real
scans in FOLDER (see `tests/conftest.py`), and random boxes cut from all of these. Each is then spoiled in
every way of `SPOILED`. Boxes without air are counted apart: there a changed scale leaves few traces.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from medclip_jax.corpora.phantom import generate
from medclip_jax.volumes import Volume, VolumeRejected, read_volume
from medclip_jax.volumes.checks import check_hu, to_int16

AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])
KINDS = ("chest", "lean chest", "contrast chest", "abdomen", "head", "lungs only")


def drawn(kind: str, noise: float, generator: np.random.Generator, shape=(24, 96, 104)) -> np.ndarray:
    """A body in air: HU of the tissues, some texture, noise; cut to 12 bits as scanners do."""
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.full(shape, -1000.0)
    skin = (w / 0.9) ** 2 + (h / 0.75) ** 2 < 1
    wall = 0.03 if kind == "lean chest" else 0.1
    inner = (w / (0.9 - wall)) ** 2 + (h / (0.75 - wall)) ** 2 < 1
    hu[skin], hu[inner] = -102, 52
    if kind == "head":
        skull = (w / 0.84) ** 2 + (h / 0.69) ** 2 < 1
        hu[skin], hu[skull], hu[inner] = -80, 800, 34
        hu[(w / 0.2) ** 2 + (h / 0.15) ** 2 < 1] = 8
    elif kind == "abdomen":
        hu[((w - 0.3) / 0.35) ** 2 + (h / 0.4) ** 2 < 1] = 60
        hu[((w + 0.3) / 0.2) ** 2 + ((h + 0.1) / 0.3) ** 2 < 1] = -98
        hu[((w + 0.2) / 0.06) ** 2 + ((h - 0.3) / 0.06) ** 2 < 1] = -990  # gas
    else:
        for side in (-1, 1):
            hu[((w - 0.4 * side) / 0.3) ** 2 + ((h - 0.05) / 0.5) ** 2 + (d * 0.5) ** 2 < 1] = -840
        hu[(w / 0.16) ** 2 + ((h - 0.2) / 0.2) ** 2 < 1] = 330 if kind == "contrast chest" else 42
    hu[(w / 0.1) ** 2 + ((h + 0.5) / 0.1) ** 2 < 1] = 250
    hu[(w / 0.11) ** 2 + ((h + 0.5) / 0.11) ** 2 < 1] += 150
    hu += np.where(hu > -300, 12, 25) * generator.normal(0, 1, shape)
    if kind == "lungs only":
        hu[~((hu < -600) & inner)] = -1024
        vessels = ((w * 23) % 3 < 0.7) & ((h * 19) % 3 < 0.6) & (hu > -1000)
        hu[vessels] = 40
        hu = hu[:, 22:-20, 12:50]
    hu = hu + generator.normal(0, noise, hu.shape)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def scans(real: Path | None, crops: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, HU) of whole volumes and of boxes cut from them."""
    generator = np.random.default_rng(0)
    whole = {
        f"{kind}, noise {noise}": drawn(kind, noise, generator)
        for kind in KINDS
        for noise in (5, 15, 40, 100)
    }
    whole |= {f"phantom {i}": generate(7, i).voxels for i in range(8)}
    if real:
        for path in sorted(real.iterdir()):
            if path.name.startswith(("chest", "abdomen", "upper", "dicom")) and "masks" not in path.name:
                whole[f"real {path.name}"] = read_volume(path).voxels
    for name, hu in whole.items():
        yield name, hu
    for name, hu in whole.items():
        for number in range(crops if name.startswith("real") else crops // 8):
            size = [int(generator.uniform(min(n, 16), max(min(n, 16), 0.7 * n)) // 1) for n in hu.shape]
            start = [int(generator.integers(0, n - s + 1)) for n, s in zip(hu.shape, size, strict=True)]
            box = hu[tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))]
            inside = box[box > -950]
            if inside.size > 0.05 * box.size and (inside > -200).mean() > 0.1:
                yield f"box of {name} #{number}", box


def to_bytes(low: float, high: float, start: float = 0) -> Callable:
    """Window to 8 bits."""
    return lambda hu: np.rint((np.clip(hu, low, high) - low) / (high - low) * 255) + start


def equalized(hu: np.ndarray) -> np.ndarray:
    """Ranks as gray values."""
    _, place = np.unique(hu, return_inverse=True)
    ranks = np.cumsum(np.bincount(place.ravel())) / hu.size
    return (ranks[place] * 255).reshape(hu.shape)


ACCEPTED = {
    "clipped [-1000,1000]": lambda hu: np.clip(hu, -1000, 1000),
    "clipped [-1000,400]": lambda hu: np.clip(hu, -1000, 400),
    "clipped [-1024,600]": lambda hu: np.clip(hu, -1024, 600),
    "8 bits of [-1000,1000], in HU": lambda hu: to_bytes(-1000, 1000)(hu) * 2000 / 255 - 1000,
    "padding -2000": lambda hu: np.where(np.arange(hu.shape[-1]) < 0.15 * hu.shape[-1], -2000, hu),
    "blurred": lambda hu: (hu[:-1].astype(float) + hu[1:]) / 2,
    "air 15 too high": lambda hu: np.where(hu < -700, hu + 15, hu),
}
"""What stays HU, perhaps with a note."""

SPOILED = {
    **{
        f"windowed [{low},{high}]": lambda hu, low=low, high=high: np.clip(hu, low, high)
        for low, high in (
            (-125, 275), (-150, 250), (-160, 240), (-100, 300), (-200, 300), (-500, 500), (-500, 1300),
            (-800, 200), (-1350, 150), (-1250, 250), (-1000, 200), (0, 80), (-300, 800),
        )
    },
    "8 bits [-1000,1000]": to_bytes(-1000, 1000),
    "8 bits [-1000,1000], signed": to_bytes(-1000, 1000, -128),
    "8 bits [-160,240]": to_bytes(-160, 240),
    "8 bits [-160,240], signed": to_bytes(-160, 240, -128),
    "8 bits [-1350,150]": to_bytes(-1350, 150),
    "HU*2": lambda hu: hu * 2.0,
    "HU*0.5": lambda hu: hu * 0.5,
    "HU*4": lambda hu: hu * 4.0,
    "HU*0.25": lambda hu: hu * 0.25,
    "HU/1000": lambda hu: hu / 1000,
    "HU*10": lambda hu: np.clip(hu * 10.0, -32768, 32767),
    "z-score": lambda hu: (hu - hu.mean()) / hu.std(),
    "z-score x 100": lambda hu: (hu - hu.mean()) / hu.std() * 100,
    "z-score x 255": lambda hu: (hu - hu.mean()) / hu.std() * 255,
    "[0,1]": lambda hu: (np.clip(hu, -1000, 1000) + 1000) / 2000,
    "[-1,1]": lambda hu: np.clip(hu, -1000, 1000) / 1000,
    "[0,1000]": lambda hu: (hu - hu.min()) / (hu.max() - hu.min()) * 1000.0,
    "[0,4095]": lambda hu: (hu - hu.min()) / (hu.max() - hu.min()) * 4095.0,
    "equalized": equalized,
    "equalized to [-1000,1000]": lambda hu: equalized(hu) / 255 * 2000 - 1000,
    "negated": lambda hu: -hu.astype(float),
    "inverted 12 bit": lambda hu: 3071.0 - hu,
    "HU+1000": lambda hu: hu + 1000.0,
    "HU+1024": lambda hu: hu + 1024.0,
    "HU-1000": lambda hu: hu - 1000.0,
    "HU-1024": lambda hu: hu - 1024.0,
    "HU+8192": lambda hu: hu + 8192.0,
    "HU-8192": lambda hu: hu - 8192.0,
    "HU+100": lambda hu: hu + 100.0,
    "HU+32768 wrapped": lambda hu: hu.astype(np.float64) + 32768,
}  # fmt: skip
"""What is no HU any more."""


def outcome(values: np.ndarray) -> str:
    """Code of the rejection, or "accepted" with the notes."""
    try:
        voxels, _ = to_int16(np.asarray(values, np.float32), "CT")
        notes = check_hu(Volume(voxels, (1.0, 1.0, 1.0), AFFINE))
    except VolumeRejected as error:
        return f"{error.code}: {error}"
    return "accepted " + " ".join(notes)


def main() -> None:
    """Print a table of errors; with --list each erroneous case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path)
    parser.add_argument("--crops", type=int, default=40)
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    tried, wrong, codes, notes = Counter(), Counter(), {}, Counter()
    for name, hu in scans(arguments.real, arguments.crops):
        air = float((hu < -930).mean())
        group = "whole" if not name.startswith("box") else "box with air" if air > 0.02 else "box without air"
        changes = {"HU as it is": lambda hu: hu} | ACCEPTED | SPOILED
        for change, function in changes.items():
            values = function(hu)
            if change != "HU as it is" and (np.abs(values - hu[: len(values)]) > 1).mean() < 0.02:
                continue  # nothing changed
            result = outcome(values)
            tried[change, group] += 1
            accepted = result.startswith("accepted")
            if accepted:
                notes.update((change, note.partition(":")[0]) for note in result.split()[1:])
            else:
                codes.setdefault(change, Counter())[result.partition(":")[0]] += 1
            if accepted == (change in SPOILED):
                wrong[change, group] += 1
                if arguments.list:
                    print(f"{name:34s} {change:28s} {result[:150]}")
    groups = ("whole", "box with air", "box without air")
    print(f"{'':32s}" + "".join(f"{group:>20s}" for group in groups) + "   codes")
    for change in changes:
        cells = "".join(f"{wrong[change, g]:>12d} of {tried[change, g]:<4d}" for g in groups)
        told = ", ".join(f"{k} {v}" for k, v in codes.get(change, Counter()).most_common(4))
        if change not in SPOILED:
            told += " | " + ", ".join(f"{n} {v}" for (c, n), v in notes.most_common() if c == change)
        print(f"{change:32s}{cells}   {told}")


if __name__ == "__main__":
    main()
