"""Sections of a page on what a model tells of volumes: scores of classification and retrieval."""

import numpy as np

from medclip_jax.evaluation.class_probe import ClassProbeResult
from medclip_jax.evaluation.few_shot import FewShotResult
from medclip_jax.evaluation.knn import KnnResult
from medclip_jax.evaluation.library import LibraryResult
from medclip_jax.evaluation.mlp_probe import MlpProbeResult
from medclip_jax.evaluation.ordinal import OrdinalResult
from medclip_jax.evaluation.prediction import PredictionResult
from medclip_jax.evaluation.probe_result import ProbeResult, percent
from medclip_jax.evaluation.prognosis_result import PrognosisResult
from medclip_jax.evaluation.results import TOO_FEW, number
from medclip_jax.evaluation.retrieval_result import RetrievalResult
from medclip_jax.evaluation.views import ViewsResult
from medclip_jax.evaluation.vocabulary import VocabularyResult
from medclip_jax.evaluation.volume_retrieval import VolumeRetrievalResult
from medclip_jax.evaluation.zero_shot_result import THRESHOLD_OF_SCORED, ZeroShotResult
from medclip_jax.pages import figures, probe_figures, survival_figures
from medclip_jax.pages.library import add_library
from medclip_jax.pages.result_sections import Place, add_section, add_tile


@add_tile.register
def _(result: ZeroShotResult, at: Place) -> None:
    mean = TOO_FEW if np.isnan(result.shown_mean) else number(result.shown_mean)
    at.page.tile(mean, at.title("mean zero-shot AUROC", "zero_shot"))


@add_section.register
def _(result: ZeroShotResult, at: Place) -> None:
    at.page.section(
        at.title("Zero-shot classification", "zero_shot"),
        "Each finding is decided by which of two prompts lies nearer to the volume; the model was "
        "never trained as a classifier. An AUROC of 0.5 is chance.",
    )
    _add_scores(result, at)


@add_tile.register
def _(result: PredictionResult, at: Place) -> None:
    if result.survival is not None:
        at.page.tile(number(result.concordance), at.title("concordance of predictions", "prediction"))
        return
    mean = TOO_FEW if np.isnan(result.shown_mean) else number(result.shown_mean)
    at.page.tile(mean, at.title("mean AUROC of predictions", "prediction"))


@add_section.register
def _(result: PredictionResult, at: Place) -> None:
    at.page.section(
        at.title("Predictions", "prediction"),
        "What the model was trained to tell. An AUROC of 0.5 is chance.",
    )
    for table in (result.survival_table(), result.class_table()):
        if table is not None:
            at.page.table(table)
    if result.findings:
        _add_scores(result, at)


def _add_scores(result: ZeroShotResult, at: Place) -> None:
    """Pictures and tables of scores, whatever they are of."""
    page = at.page
    page.figure(
        figures.auroc_bars(result, at.baseline, at.baseline_name),
        "Bars: AUROC of each finding with its interval",
        "Gray: 95 % bootstrap interval over patients. Dotted: chance."
        + (f" Diamond: {at.baseline_name}." if at.baseline else ""),
    )
    page.figure(
        figures.roc(result),
        "ROC curves, one for each finding",
        "Sensitivity against 1 - specificity at every threshold.",
    )
    page.table(result.table())
    if THRESHOLD_OF_SCORED in result.conditions.get("threshold", ""):
        page.paragraph(
            "The thresholds below were chosen on the very volumes that are scored with them: what "
            "depends on them is flattered.",
            note=True,
        )
    page.table(result.calls_table())


@add_tile.register
def _(result: RetrievalResult, at: Place) -> None:
    k = sorted(result.image_to_text.recall)[0]
    for label, side in (("image to text", result.image_to_text), ("text to image", result.text_to_image)):
        at.page.tile(number(side.recall[k]), at.title(f"{label} R@{k}", "retrieval"))


@add_section.register
def _(result: RetrievalResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Retrieval", "retrieval"),
        "R@k: share of queries with an item of their own study among the k nearest. P@k: share of "
        "volumes with the finding among the k nearest to its prompt; compare it with chance.",
    )
    for table in (result.table(), result.subset_table(), result.pool_table(), result.keyword_table()):
        if table is not None:
            page.table(table)


@add_section.register
def _(result: VolumeRetrievalResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Volumes by a volume", "volume_retrieval"),
        "Do the volumes that lie nearest to one have its findings? The second line is what a random "
        "order gives.",
    )
    page.table(result.table())


@add_tile.register
def _(result: OrdinalResult, at: Place) -> None:
    at.page.tile(number(result.auroc.mean), f"mean ordinal AUROC, {result.name}")


@add_section.register
def _(result: OrdinalResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Ordered grades", "ordinal"),
        "One similarity ranks the volumes; each cut of the scale asks whether it separates higher "
        "grades from lower ones.",
    )
    page.figure(figures.grade_boxes(result), "Similarity to the prompt for each grade")
    page.table(result.table())


@add_tile.register
def _(result: ViewsResult, at: Place) -> None:
    at.page.tile(number(result.top1["gain_over_noise"]), "crops that find their volume, less noise")


@add_section.register
def _(result: ViewsResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Views of volumes", "views"),
        "Crops that read a report and look for its volume. What noise in their place finds, too, was "
        "found in the report.",
    )
    page.table(result.table())


@add_section.register
def _(result: LibraryResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Library", "library"),
        "Every volume is looked up among those of other patients, by its pictures alone. P@k: share "
        "of the k nearest that have the same diagnosis or finding; compare it with chance.",
    )
    add_library(page, result)


@add_tile.register
def _(result: ProbeResult, at: Place) -> None:
    share = max(result.trained)
    mean = result.mean(share)
    value = TOO_FEW if mean is None else number(mean.value)
    at.page.tile(value, f"mean AUROC of the linear probe, {percent(share)} of labels")


@add_section.register
def _(result: ProbeResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Linear probe", "probe"),
        "A logistic regression for each finding on the features of the frozen volume tower, with a "
        "part of the training labels and with all of them.",
    )
    if result.shown:
        page.figure(
            probe_figures.label_shares(result),
            "AUROC against the share of the training labels",
            "Band: 95 % bootstrap interval over patients. Dotted: chance."
            + (" Gray, dashed: the same architecture with random weights." if result.random else ""),
        )
    for table in result.tables():
        page.table(table)


@add_section.register
def _(result: KnnResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Nearest neighbors", "knn"),
        "What the volumes have that lie nearest to one. Nothing is trained, and no number of them is chosen.",
    )
    page.figure(
        probe_figures.neighbors(result),
        "Accuracy and AUROC against the number of neighbors",
        "Band: 95 % bootstrap interval over patients.",
    )
    for table in result.tables():
        page.table(table)


@add_tile.register
def _(result: ClassProbeResult, at: Place) -> None:
    at.page.tile(number(result.group.values["accuracy"]), "accuracy of the classes, linear probe")


@add_section.register
def _(result: ClassProbeResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Linear probe of classes", "class_probe"),
        "One linear classifier of all classes on the features of the frozen volume tower.",
    )
    for table in result.tables():
        page.table(table)


@add_section.register
def _(result: VocabularyResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Vocabulary", "vocabulary"),
        "Two projections, trained on the frozen encoders, tell each finding by two prompts; two more find "
        "reports.",
    )
    for table in result.tables():
        page.table(table)


@add_tile.register
def _(result: FewShotResult, at: Place) -> None:
    if result.group:
        shots = result.shots[0]
        at.page.tile(number(result.group.accuracy[shots].mean()), f"accuracy of the classes, {shots} shot")


@add_section.register
def _(result: FewShotResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Few-shot", "few_shot"),
        "A few examples of each class, drawn many times; a volume belongs to the class whose mean is "
        "nearest. Nothing is trained.",
    )
    page.figure(
        probe_figures.shots(result),
        "Accuracy and AUROC against the number of examples",
        "Lines: mean over the draws. Band: their standard deviation.",
    )
    for table in result.tables():
        page.table(table)


@add_tile.register
def _(result: MlpProbeResult, at: Place) -> None:
    if result.group:
        at.page.tile(number(result.group.values["accuracy"]), "accuracy of the classes, MLP probe")


@add_section.register
def _(result: MlpProbeResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("MLP probe", "mlp_probe"),
        "A small classifier on the features of the frozen volume tower, trained with labels.",
    )
    for table in result.tables():
        page.table(table)


@add_tile.register
def _(result: PrognosisResult, at: Place) -> None:
    value = number(result.scores["model"].values["harrell_c"]) if result.is_enough else TOO_FEW
    at.page.tile(value, at.title("Harrell's C", "prognosis"))


@add_section.register
def _(result: PrognosisResult, at: Place) -> None:
    page = at.page
    page.section(
        at.title("Prognosis", "prognosis"),
        "A survival head on the features of the frozen volume tower: does who has the event earlier get the "
        "higher risk, and are the probabilities what they say?",
    )
    page.figure(
        survival_figures.survival_curves(result),
        "Kaplan-Meier curves of the risk groups, and the numbers at risk",
        "Band: 95 % interval. Strokes: ends of observation without the event. Below: how many were still "
        "under observation. The limits of the groups come from the validation split.",
    )
    page.figure(
        survival_figures.auc_over_time(result),
        "AUC over time",
        "At each time, those who had the event by then against those known to be without it, by one risk for "
        "all times. Band: 95 % bootstrap interval over patients. Upright lines: horizons. Dotted: chance.",
    )
    page.figure(
        survival_figures.calibration(result),
        "Calibration at each horizon",
        "Each dot is a group of patients with similar predicted probability; on the dotted line they are "
        "what they say. Gray: 95 % interval of the Kaplan-Meier estimate.",
    )
    for table in result.tables():
        page.table(table)
