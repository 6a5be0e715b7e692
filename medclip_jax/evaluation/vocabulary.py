"""Vocabulary: what two linear projections on frozen encoders learn of findings and of reports (ASAP).

Each finding is told by "X." and "not X.". Beside that, projections of their own bring reports together with
their volumes. What a model's encoders know is then judged without the space that its training made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Int64

from medclip_jax.evaluation import adapters as trained
from medclip_jax.evaluation import bootstrap
from medclip_jax.evaluation.adapters import WIDTH, Schedule, pair_loss, projected, vocabulary_loss
from medclip_jax.evaluation.embeddings import (
    TEXT_FIELDS,
    EmbeddedSplit,
    EncodeTexts,
    refuse_shared_patients,
)
from medclip_jax.evaluation.metrics import mean_of_defined
from medclip_jax.evaluation.results import (
    TOO_FEW,
    NotEvaluable,
    Table,
    label_source,
    needs,
    not_scored,
    number,
)
from medclip_jax.evaluation.retrieval import evaluate_retrieval
from medclip_jax.evaluation.retrieval_result import RetrievalResult
from medclip_jax.evaluation.scored import Scored
from medclip_jax.evaluation.similarity import means
from medclip_jax.evaluation.task_answers import TaskAnswers, answer, flat_metrics, scored_tasks
from medclip_jax.evaluation.tasks import describe_features, features_of, find_tasks

_METRICS = ("auroc", "average_precision", "accuracy", "balanced_accuracy")


@dataclass(frozen=True)
class VocabularyResult:
    """Findings told by trained projections, and reports found.

    Attributes:
        findings: name to what was found.
        lacking: name to the reason why it was not scored.
        retrieval: of reports by volumes and the reverse; None where there are no reports.
        conditions: n, labels, features, training, intervals, in words.
        patients: (N,) keyed hash of the patient of each scored volume.
        ids: keyed hashes of these volumes; () where they are not known.
    """

    findings: Mapping[str, TaskAnswers]
    lacking: Mapping[str, str]
    retrieval: RetrievalResult | None
    conditions: Mapping[str, str]
    patients: Int64[np.ndarray, " N"] = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: Sequence[str] = ()

    def metrics(self) -> dict[str, float]:
        """Keys of `task_answers.flat_metrics`; ``image_to_text/R@50``, ``text_to_image/R@50`` and so on."""
        flat = flat_metrics(self.findings)
        if self.retrieval:
            sides = ("image_to_text/", "text_to_image/")
            flat |= {key: x for key, x in self.retrieval.metrics().items() if key.startswith(sides)}
        return flat

    def scored(self) -> dict[str, Scored]:
        """Probability of each finding for every volume."""
        return {"": Scored(self.ids, self.patients, scored_tasks(self.findings))}

    def table(self) -> Table:
        """One line for each finding, then the mean of what is shown."""
        rows, shown = [], [task for task in self.findings.values() if task.is_enough]
        for name, task in self.findings.items():
            cells = [task.shown(metric) if task.is_enough else TOO_FEW for metric in _METRICS]
            rows.append((name, str(task.scored[1]), str(task.scored[0]), *cells))
        mean = (mean_of_defined(task.values[metric] for task in shown) for metric in _METRICS)
        rows.append(("mean", "", "", *(map(number, mean) if shown else [TOO_FEW] * len(_METRICS))))
        header = ("finding", "present", "absent", "AUROC", *(one.replace("_", " ") for one in _METRICS[1:]))
        conditions = {**self.conditions, **not_scored(self.lacking)}
        return Table("Vocabulary: findings", header, tuple(rows), conditions)

    def tables(self) -> list[Table]:
        """Of the findings, and of retrieval where there are reports."""
        found = [self.table()]
        if self.retrieval:
            found.append(replace(self.retrieval.table(), title="Vocabulary: retrieval"))
        return found

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))


@needs("text", "pooled")
def evaluate_vocabulary(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    findings: Sequence[str] = (),
    labels: str = "labels",
    features: str = "pooled",
    text: str = "report",
    train: str = "train",
    epochs: int = 20,
    batch: int = 16,
    retrieval_epochs: int = 40,
    retrieval_batch: int = 8,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    ks: Sequence[int] = (1, 5, 10, 50),
    draws: int = 1000,
    seed: int = 0,
    load_split: Callable[[str], EmbeddedSplit] | None = None,
) -> VocabularyResult:
    """Train two projections on frozen encoders for findings, and two more for reports, and score them.

    Args:
        data: the split to score.
        encode_texts: the model's text side, frozen.
        findings: findings to tell; () for all columns of the shards.
        labels: "labels" for ground truth, "findings" for what the reports say.
        features: of the volumes, one of `tasks.FEATURES`.
        text: field of the records whose texts are found, one of `TEXT_FIELDS`.
        train: split to learn from.
        epochs: passes over what is learned from, for findings.
        batch: volumes at a time, for findings.
        retrieval_epochs: passes for retrieval; 0 for no retrieval.
        retrieval_batch: volumes and texts at a time for retrieval.
        learning_rate: of AdamW.
        weight_decay: likewise.
        ks: of R@k.
        draws: bootstrap resamples of patients for the intervals of the findings; 0 for none.
        seed: of initial weights and order, and of the bootstrap.
        load_split: embeds another split.

    Returns:
        The result.

    Raises:
        NotEvaluable: nothing is known of any finding, or a split is not there.
        ValueError: the splits share patients, an unknown finding or option, or a feature is not finite.
    """
    if text not in TEXT_FIELDS:
        raise ValueError(f"text={text!r}: use one of {', '.join(TEXT_FIELDS)}")
    if load_split is None:
        raise NotEvaluable("load_split must say where the split to learn from is")
    learned = load_split(train)
    refuse_shared_patients(data, learned)
    tasks, lacking = find_tasks(learned, data, classes=(), findings=findings, labels=labels)
    inputs, queries = (features_of(split, features) for split in (learned, data))
    prompts = np.stack([_pair(encode_texts, data.definitions[name].phrase) for name in tasks])
    schedule = Schedule(epochs, batch, learning_rate, weight_decay, seed)
    known = np.stack([_labels(task.learned) for task in tasks.values()], axis=1)
    told = _tell(inputs, queries, prompts, known, schedule)
    weights = bootstrap.draw_patients(data.patients, draws, seed)
    answers = {name: answer(tasks[name], told[:, at], weights) for at, name in enumerate(tasks)}
    retrieval, why = None, ""
    if retrieval_epochs:
        schedule = schedule._replace(epochs=retrieval_epochs, batch=retrieval_batch)
        retrieval, why = _retrieve(learned, data, inputs, queries, encode_texts, text, ks, schedule)
    conditions = {
        "n": f"{data.counted}; learned from {len(learned.patients)} of {train!r}",
        "labels": label_source(labels),
        "features": describe_features(data, features),
        "prompts": '"X." and "not X.", softmax over the pair of cosines',
        "training": f"two projections to {WIDTH}, AdamW {learning_rate:g}, weight decay {weight_decay:g}, "
        f"seed {seed}; findings {epochs} epochs in batches of {batch}"
        + (f"; retrieval {retrieval_epochs} in batches of {retrieval_batch}" if retrieval else ""),
        "intervals": bootstrap.described(draws, seed),
    }
    if why:
        conditions["no retrieval"] = why
    return VocabularyResult(answers, lacking, retrieval, conditions, data.patients, data.ids)


def _pair(encode_texts: EncodeTexts, phrase: str) -> np.ndarray:
    """Vectors of the prompts of absence and of presence."""
    return means(encode_texts([f"not {phrase}.", f"{phrase}."]))


def _labels(classes: Int64[np.ndarray, " N"]) -> np.ndarray:
    """1 present, -1 absent, 0 unknown, from the classes of a task."""
    return np.where(classes < 0, 0, 2 * classes - 1).astype(np.int8)


def _tell(
    inputs: np.ndarray, queries: np.ndarray, prompts: np.ndarray, labels: np.ndarray, schedule: Schedule
) -> np.ndarray:
    """Probability of absence and of presence, (M, F, 2) float64."""
    prompts = prompts.astype(np.float32)
    adapters = trained.train(
        lambda adapters, rows: vocabulary_loss(adapters, rows["volumes"], prompts, rows["labels"]),
        {"volumes": inputs, "labels": labels},
        (inputs.shape[1], prompts.shape[-1]),
        schedule,
    )
    seen, said = projected(queries, adapters.volume), projected(prompts, adapters.text)
    cosines = np.einsum("mw,fcw->mfc", seen.astype(np.float64), said)
    chances = np.exp(cosines)
    return chances / chances.sum(axis=-1, keepdims=True)


def _retrieve(
    learned: EmbeddedSplit,
    data: EmbeddedSplit,
    inputs: np.ndarray,
    queries: np.ndarray,
    encode_texts: EncodeTexts,
    text: str,
    ks: Sequence[int],
    schedule: Schedule,
) -> tuple[RetrievalResult | None, str]:
    """What projections that were trained for retrieval find; or why there are none."""
    texts = learned.texts.get(text, [])
    rows = np.flatnonzero([bool(one.strip()) for one in texts])
    if len(rows) < 2:
        return None, f"fewer than two volumes to learn from have a text in {text!r}"
    vectors = means(encode_texts([texts[row] for row in rows])).astype(np.float32)
    adapters = trained.train(
        lambda adapters, rows: pair_loss(adapters, rows["volumes"], rows["texts"], rows["there"]),
        {"volumes": inputs[rows], "texts": vectors, "there": np.ones(len(rows), np.int8)},
        (inputs.shape[1], vectors.shape[1]),
        schedule,
    )

    def encode(given: Sequence[str]) -> np.ndarray:
        return projected(means(encode_texts(given)), adapters.text)

    moved = replace(data, volumes=projected(queries, adapters.volume))
    try:
        return evaluate_retrieval(moved, encode, text=text, ks=ks, subset=0), ""
    except NotEvaluable as reason:
        return None, str(reason)
