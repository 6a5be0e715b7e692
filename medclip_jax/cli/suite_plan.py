"""`medclip evaluate --suite phantom`: which systems, which tasks, and how long each stage may take."""

from __future__ import annotations

from dataclasses import dataclass

MINUTES = 30
"""What the whole suite is planned for, on two CPU cores."""

PHANTOMS = 720
DATA_SECONDS = 175
"""Of generating and preparing them."""

EVALUATION_SECONDS = 28
"""Of all tasks on the frozen model of one system."""

SEGMENTATION_SECONDS = 84
"""Of fine-tuning one system's tower to segment, and scoring it."""

SEGMENTED = 12
"""Scans of the test split that segmentation is scored on."""

NOT_HERE = (
    "CMR-CLIP is not in this table: it reads frames of cardiac MR, and these are chest CTs. "
    "`medclip demo --system cmr_clip` shows it on beating hearts."
)


@dataclass(frozen=True)
class System:
    """A training of the suite.

    Attributes:
        title: in tables.
        config: of the configs that came with the package.
        steps: so many.
        seconds: planned for the training, compilation included.
        begins_with: the system whose volume tower it begins with; "" for none.
        segmentation: config of its segmentation, which begins with its tower.
        overrides: further ones, as on the command line.
        about: one line.
    """

    title: str
    config: str
    steps: int
    seconds: int
    begins_with: str = ""
    segmentation: str = "suite/segment.py"
    overrides: tuple[str, ...] = ()
    about: str = ""


SYSTEMS: dict[str, System] = {
    "random": System(
        "random weights",
        "demo/contrastive.py",
        1,
        18,
        overrides=tuple(
            f"--config.optimizer.{name}=0" for name in ("learning_rate", "weight_decay", "warmup_steps")
        ),
        about="the towers of Cardiac-CLIP as they are drawn: what the architecture gives without training",
    ),
    "mae": System(
        "masked autoencoder",
        "demo/mae.py",
        50,
        49,
        about="sees volumes alone; the start of Cardiac-CLIP, the strong recipe and the supervised baseline",
    ),
    "cardiac_clip": System(
        "Cardiac-CLIP",
        "demo/contrastive.py",
        200,
        106,
        begins_with="mae",
        about="soft targets from findings, after the masked autoencoder",
    ),
    "supervised": System(
        "supervised baseline",
        "downstream/demo.py",
        200,
        95,
        begins_with="mae",
        about="the volume tower of Cardiac-CLIP, trained with all labels and no report",
    ),
    "strong": System(
        "strong recipe",
        "strong/demo.py",
        200,
        121,
        begins_with="mae",
        about="sigmoid pairs and prompts of findings, after the masked autoencoder",
    ),
    "hipro_ct": System(
        "HiPro-CT",
        "hipro_ct/demo.py",
        80,
        155,
        segmentation="suite/segment_hipro_ct.py",
        about="Gaussians of volumes, reports, organs and sentences",
    ),
    "asap": System(
        "ASAP",
        "asap/demo.py",
        40,
        106,
        segmentation="suite/segment_asap.py",
        about="masked volumes and reports, organs, selected sentences",
    ),
    "t3d": System(
        "T3D",
        "t3d/demo.py",
        50,
        71,
        segmentation="suite/segment_t3d.py",
        about="views of a volume and their report, a small ResNet",
    ),
}
"""Name to training, in the order in which they are run: each stands behind the one that it begins with."""


@dataclass(frozen=True)
class Task:
    """A column of the table.

    Attributes:
        title: in tables.
        evaluator: in `configs/evaluation/suite.py`.
        metric: key below the evaluator's name, as in docs/reference/metrics.md.
        about: what the number is, in a line.
        chance: of a model that knows nothing; "" where there is no such number.
        best: which end is the better one, "highest" or "lowest"; "" where neither is.
        digits: decimals.
        fine_tuned: by a model of its own, which began with the system's tower.
    """

    title: str
    evaluator: str
    metric: str
    about: str
    chance: str = ""
    best: str = "highest"
    digits: int = 3
    fine_tuned: bool = False

    @property
    def key(self) -> str:
        """The metric's name in a file of results."""
        return f"{self.evaluator}/{self.metric}"


TASKS: tuple[Task, ...] = (
    Task("zero-shot AUROC", "zero_shot", "auroc_mean", "findings by prompts, mean over the findings", "0.5"),
    Task(
        "trained answers, AUROC",
        "prediction",
        "auroc_mean",
        "what a model that was trained with all labels tells by itself, mean over the findings",
        "0.5",
    ),
    Task(
        "report to scan R@10",
        "retrieval",
        "text_to_image/R@10",
        "share of impressions whose scan is among the ten nearest",
        "10 / scans",
    ),
    Task(
        "scan to report R@10",
        "retrieval",
        "image_to_text/R@10",
        "share of scans whose impression is among the ten nearest",
        "10 / scans",
    ),
    *(
        Task(
            f"probe {share}",
            "probe",
            f"{share}/auroc_mean",
            f"AUROC of a linear probe on frozen features with {share} of the labels, mean over findings",
            "0.5",
        )
        for share in ("1%", "10%", "100%")
    ),
    Task(
        "20 nearest AUROC",
        "knn",
        "20_nearest/auroc_mean",
        "findings by their share among the 20 nearest scans of the training split, mean over findings",
        "0.5",
    ),
    Task(
        "16-shot AUROC",
        "few_shot",
        "16_shot/auroc_mean",
        "findings by the nearer of two prototypes of 16 scans each, mean over draws and findings",
        "0.5",
    ),
    Task(
        "prognosis C",
        "prognosis",
        "harrell_c",
        "Harrell's concordance of a Cox head on frozen features with the months of survival; "
        "the hazard that drew them has 0.76",
        "0.5",
    ),
    Task(
        "vocabulary AUROC",
        "vocabulary",
        "auroc_mean",
        "findings by two projections that learned them on frozen features and prompts, mean over findings",
        "0.5",
    ),
    Task(
        "pointing, hits",
        "pointing",
        "hit_mean",
        "share of heat maps, ten of each lesion, that are highest within 10 mm of it; mean over lesions",
        "pointing/chance_mean in the files of results",
    ),
    *(
        Task(
            f"gap by {column}",
            "subgroups",
            f"probe/100%/{column}/auroc_widest",
            f"AUROC of the probe in the best group less that in the worst, by {column}",
            "0",
            best="lowest",
        )
        for column in ("contrast", "scanner", "sex")
    ),
    Task(
        "segmentation, Dice",
        "segmentation",
        "dice_mean",
        f"five organs and five lesions after a few steps with a decoder, {SEGMENTED} scans, mean over them",
        "0",
        fine_tuned=True,
    ),
    Task(
        "effective rank",
        "spectrum",
        "effective_rank/",
        "of the last layer's tokens, exp of the entropy of their singular values; at most the width",
        best="",
        digits=1,
    ),
)
