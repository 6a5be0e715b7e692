"""A noisy abdomen, and tables as archives publish them."""

import csv
from pathlib import Path

import numpy as np


def abdomen(shape=(12, 32, 36), seed=0):
    """Air, fat, muscle, a liver and gas in the bowel with noise, and no lung: int16 HU (D, H, W)."""
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    values = np.full(shape, -1000.0)
    values[(w / 0.94) ** 2 + (h / 0.82) ** 2 < 1] = -100
    values[(w / 0.8) ** 2 + (h / 0.66) ** 2 < 1] = 45
    values[((w - 0.4) / 0.3) ** 2 + ((h - 0.05) / 0.4) ** 2 + (d * 0.6) ** 2 < 1] = 110
    values[((w + 0.3) / 0.1) ** 2 + ((h - 0.3) / 0.12) ** 2 < 1] = -960
    values[(w / 0.12) ** 2 + ((h + 0.45) / 0.15) ** 2 < 1] = 350
    noise = np.random.default_rng(seed).normal(0, 15, shape)
    return np.rint(values + noise).astype(np.int16)


def write_table(path: Path, rows, delimiter=","):
    """Write dicts as a CSV or TSV; rows may lack columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="", delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_sheet(path: Path, rows):
    """Write dicts as the first sheet of an .xlsx."""
    import openpyxl

    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    book.active.append(list(rows[0]))
    for row in rows:
        book.active.append([row.get(name) for name in rows[0]])
    book.save(path)
    return path
