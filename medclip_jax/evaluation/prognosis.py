"""Prognosis: how well do frozen features tell who has an event, and when?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from medclip_jax.evaluation import bootstrap
from medclip_jax.evaluation import survival_metrics as metrics
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts, refuse_shared_patients
from medclip_jax.evaluation.metrics import Interval, percentile_interval
from medclip_jax.evaluation.prognosis_result import AucCurve, HorizonScores, PrognosisResult, RiskScores
from medclip_jax.evaluation.results import NotEvaluable, needs
from medclip_jax.evaluation.survival_heads import HEADS, CoxHead, DiscreteHead
from medclip_jax.evaluation.tasks import describe_features, features_of

FEWEST_EVENTS = 2
"""So many events a head wants to learn from."""

_CURVE = 12
"""Times at which the AUC is drawn."""


@dataclass(frozen=True)
class _Outcomes:
    """The rows of a split whose outcome is known."""

    rows: Int[np.ndarray, " n"]
    time: Float[np.ndarray, " n"]
    event: Bool[np.ndarray, " n"]
    unknown: int


@dataclass(frozen=True)
class _Fitted:
    """A head with the strongest penalty of the lowest loss on validation."""

    penalty: float
    cuts: Float[np.ndarray, " g"]
    risk: Float[np.ndarray, " n"]
    risk_by: Float[np.ndarray, "n T"]
    probabilities: Float[np.ndarray, "n T"]


@needs("pooled")
def evaluate_prognosis(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    time: str = "survival_months",
    event: str = "event",
    horizons: Sequence[float] = (1.0, 6.0, 12.0),
    unit: str = "months",
    head: str = "cox",
    features: str = "pooled",
    clinical: str | Sequence[str] = (),
    risks: str | Sequence[str] = (),
    train: str = "train",
    validation: str = "validation",
    penalties: Sequence[float] = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001, 0.0001),
    groups: int = 3,
    bins: int = 5,
    draws: int = 1000,
    seed: int = 0,
    load_split: Callable[[str], EmbeddedSplit] | None = None,
) -> PrognosisResult:
    """Fit a survival head on frozen features, and score it on another split.

    Features are standardized by mean and standard deviation of the training volumes whose outcome is known.
    The penalty is the one with the lowest loss on the validation split, and the limits of the risk groups are
    those of that split, too.

    Args:
        data: the split to score.
        encode_texts: not needed.
        time: measurement with the time from the scan to the event, or to the end of observation.
        event: measurement that is 1 where the event came at that time, and 0 where observation ended without
            it.
        horizons: at which probabilities are asked, in the unit of the time, increasing.
        unit: of the time, for tables and figures.
        head: "cox" for proportional hazards, "discrete" for a hazard in each interval between horizons.
        features: "pooled" for what the tower pools, "embedding" for the place among the texts.
        clinical: measurements, such as age, from which a second head is fitted in the same way, to be set
            beside the first; unknown ones take the training mean. Names, or one text of them with commas
            between; () for none.
        risks: measurements that are risks themselves, such as a clinical score: patients are ranked by them,
            and nothing is learned. As `clinical`.
        train: split to learn from.
        validation: split to choose the penalty on.
        penalties: to choose from: weights of ``|w|^2 / 2`` beside the mean loss.
        groups: risk groups, cut at equal shares of the validation split.
        bins: groups of predicted probability, of about as many rows, for the calibration.
        draws: bootstrap resamples of patients for the intervals; 0 for none.
        seed: of the bootstrap.
        load_split: embeds another split.

    Returns:
        The result.

    Raises:
        NotEvaluable: no such measurement, or too few events.
        ValueError: the splits share patients, a time or an event that cannot be, horizons that do not
            increase, or a feature is not finite.
    """
    if load_split is None:
        raise ValueError("load_split must say where the splits to learn from and to choose on are")
    if list(horizons) != sorted(set(horizons)) or not horizons:
        raise ValueError(f"horizons={tuple(horizons)} must increase")
    clinical, risks = _names(clinical), _names(risks)
    splits = (load_split(train), load_split(validation), data)
    if len({split.name for split in splits}) < 3:
        raise ValueError(
            "prognosis learns, chooses and scores on splits of their own: set train and validation"
        )
    refuse_shared_patients(data, *splits[:2])
    outcomes = [_outcomes(split, time, event) for split in splits]
    _check_events(splits, outcomes)
    scored = outcomes[2]
    weights = bootstrap.draw_patients(data.patients[scored.rows], draws, seed)
    weights = np.concatenate([np.ones((1, len(scored.rows)), weights.dtype), weights])

    def fit(columns: Sequence[Float[np.ndarray, "N K"]]) -> _Fitted:
        own = [column[one.rows] for column, one in zip(columns, outcomes, strict=True)]
        return _fitted(_standardized(*own), outcomes, head, sorted(penalties)[::-1], horizons, groups)

    model = fit([features_of(split, features) for split in splits])
    ranked = {"model": _ranked(scored, model.risk, model.risk_by, horizons, weights)}
    filled = ""
    if clinical:
        columns = [_measured(split, clinical) for split in splits]
        mean = _training_means(columns[0][outcomes[0].rows], clinical)
        filled = f"{int(np.isnan(columns[2][scored.rows]).sum())} unknown values take the training mean"
        beside = fit([np.where(np.isnan(column), mean, column) for column in columns])
        ranked["clinical"] = _ranked(scored, beside.risk, beside.risk_by, horizons, weights)
    for name in risks:
        risk = _measured(data, (name,))[scored.rows, 0]
        if np.isnan(risk).any():
            raise NotEvaluable(
                f"risk {name!r} is unknown for {int(np.isnan(risk).sum())} of the {len(risk)} volumes with a "
                "known outcome, and all risks are compared on the same volumes: leave it out of risks"
            )
        ranked[name] = _ranked(scored, risk, np.tile(risk[:, None], len(horizons)), horizons, weights)

    everybody = metrics.kaplan_meier(outcomes[0].time, outcomes[0].event)
    patients = len(np.unique(data.patients[scored.rows]))
    group = np.searchsorted(model.cuts, model.risk, "right")
    conditions = {
        "n": f"{len(scored.rows)} volumes of {patients} patients with {int(scored.event.sum())} events, "
        f"split {data.name!r}; learned from {len(outcomes[0].rows)} with {int(outcomes[0].event.sum())} of "
        f"{train!r}",
        "unknown outcomes": "left out: "
        + ", ".join(f"{one.unknown} of {s.name!r}" for s, one in zip(splits, outcomes, strict=True)),
        "outcome": f"time {time!r} in {unit}, event {event!r}",
        "features": f"{describe_features(data, features)}; standardized",
        "head": {"cox": "proportional hazards, ties after Efron", "discrete": "a hazard in each interval"}[
            head
        ]
        + f"; penalty {model.penalty:g}, of {', '.join(f'{p:g}' for p in penalties)} the lowest loss on "
        f"{validation!r}",
        "Uno's C": f"events before {horizons[-1]:g} {unit}",
        "risk groups": f"{groups}, cut at equal shares of {validation!r}",
        "intervals": bootstrap.described(draws, seed),
    }
    if clinical:
        conditions["clinical"] = f"the same head on {', '.join(clinical)}; {filled}"
    if risks:
        conditions["given risks"] = f"{', '.join(risks)}, as measured: nothing was learned"
    return PrognosisResult(
        ids=tuple(data.ids),
        patients=data.patients,
        rows=scored.rows,
        time=scored.time,
        event=scored.event,
        group=group,
        group_count=groups,
        scores={name: _scores(values, risk) for name, (risk, values) in ranked.items()},
        gains=_gains(ranked),
        horizons={
            horizon: _at_horizon(
                scored, model.probabilities[:, place], horizon, everybody.at(horizon)[0], bins, weights
            )
            for place, horizon in enumerate(horizons)
        },
        curve=_curve(scored, {name: risk for name, (risk, _) in ranked.items()}, weights),
        log_rank=metrics.log_rank(scored.time, scored.event, group),
        unit=unit,
        conditions=conditions,
    )


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    given = given.split(",") if isinstance(given, str) else given
    return tuple(name.strip() for name in given if name.strip())


def _measured(split: EmbeddedSplit, names: Sequence[str]) -> Float[np.ndarray, "N K"]:
    for name in names:
        if name not in split.measurements:
            have = ", ".join(split.measurements) or "none"
            raise NotEvaluable(
                f"split {split.name!r} has no measurement {name!r} (it has: {have}): give the corpus a "
                f"column 'measurement:{name}', or set the names of time and event"
            )
    return np.stack([np.asarray(split.measurements[name], np.float64) for name in names], axis=1)


def _training_means(columns: Float[np.ndarray, "N K"], names: Sequence[str]) -> Float[np.ndarray, " K"]:
    for name, column in zip(names, columns.T, strict=True):
        if np.isnan(column).all():
            raise NotEvaluable(f"measurement {name!r} is unknown in all of the training split")
    return np.nanmean(columns, axis=0)


def _outcomes(split: EmbeddedSplit, time: str, event: str) -> _Outcomes:
    times, events = _measured(split, (time, event)).T
    rows = metrics.known_outcomes(times, events, (time, event))
    return _Outcomes(rows, times[rows], events[rows] == 1, len(times) - len(rows))


def _check_events(splits: Sequence[EmbeddedSplit], outcomes: Sequence[_Outcomes]) -> None:
    for split, one, least in zip(splits, outcomes, (FEWEST_EVENTS, 1, 1), strict=True):
        if (count := int(one.event.sum())) < least:
            raise NotEvaluable(
                f"{count} events among the {len(one.rows)} volumes of split {split.name!r} whose outcome is "
                f"known; at least {least} must be there"
            )


def _standardized(*features: Float[np.ndarray, "N K"]) -> list[Float[np.ndarray, "N K"]]:
    """By mean and spread of the first; what is constant there is left out."""
    first = features[0].astype(np.float64)
    mean, spread = first.mean(axis=0), first.std(axis=0)
    varies = spread > 1e-6 * np.maximum(np.abs(mean), 1e-12)  # else it is what float32 rounds
    return [(x[:, varies].astype(np.float64) - mean[varies]) / spread[varies] for x in features]


def _fitted(
    features: Sequence[Float[np.ndarray, "N K"]],
    outcomes: Sequence[_Outcomes],
    head: str,
    penalties: Sequence[float],
    horizons: Sequence[float],
    groups: int,
) -> _Fitted:
    learned, chosen_on, _ = outcomes
    terms = int(learned.event.sum()) if head == "cox" else len(learned.time)
    heads: Sequence[CoxHead | DiscreteHead] = HEADS[head](
        features[0], learned.time, learned.event, [p * terms for p in penalties], horizons
    )
    losses = [one.loss(features[1], chosen_on.time, chosen_on.event, horizons) for one in heads]
    best = int(np.argmin(losses))  # of equal ones the strongest
    cuts = np.quantile(heads[best].risk(features[1]), np.arange(1, groups) / groups)
    return _Fitted(
        penalties[best],
        cuts,
        heads[best].risk(features[2]),
        heads[best].risk_by(features[2], horizons),
        heads[best].probabilities(features[2], horizons),
    )


def _ranked(
    scored: _Outcomes,
    risk: Float[np.ndarray, " n"],
    risk_by: Float[np.ndarray, "n T"],
    horizons: Sequence[float],
    weights: bootstrap.Weights,
) -> tuple[Float[np.ndarray, " n"], dict[str, Float[np.ndarray, " draws"]]]:
    """The risk, and metric to its values: first over all rows, then in every draw."""
    time, event = scored.time, scored.event
    values = {
        "harrell_c": metrics.harrell_c(time, event, risk, weights),
        "uno_c": metrics.uno_c(time, event, risk, horizons[-1], weights),
    }
    for horizon, told in zip(horizons, risk_by.T, strict=True):
        values[f"auc/{horizon:g}"] = metrics.auc_at(time, event, told, horizon, weights)
    return risk, values


def _scores(values: Mapping[str, np.ndarray], risk: Float[np.ndarray, " n"]) -> RiskScores:
    return RiskScores(
        risk,
        {name: float(drawn[0]) for name, drawn in values.items()},
        {name: percentile_interval(drawn[1:]) for name, drawn in values.items() if len(drawn) > 1},
    )


def _gains(ranked: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]]) -> dict:
    """Of the model over the clinical head, in the same draws."""
    if "clinical" not in ranked:
        return {}
    found = {}
    for name, values in ranked["model"][1].items():
        gained = values - ranked["clinical"][1][name]
        found[name] = float(gained[0]), percentile_interval(gained[1:]) if len(gained) > 1 else None
    return found


def _at_horizon(
    scored: _Outcomes,
    probability: Float[np.ndarray, " n"],
    horizon: float,
    alive: float,
    bins: int,
    weights: bootstrap.Weights,
) -> HorizonScores:
    time, event = scored.time, scored.event
    brier = metrics.brier_at(time, event, probability, horizon, weights)
    interval: Interval | None = percentile_interval(brier[1:]) if len(brier) > 1 else None
    happened, without = event & (time <= horizon), (time > horizon) | (~event & (time == horizon))
    return HorizonScores(
        events=int(happened.sum()),
        without=int(without.sum()),
        censored=int((~happened & ~without).sum()),
        brier=float(brier[0]),
        brier_interval=interval,
        brier_of_all_alike=float(metrics.brier_at(time, event, np.full(len(time), 1 - alive), horizon)[0]),
        calibration=metrics.calibration(time, event, probability, horizon, bins),
    )


def _curve(
    scored: _Outcomes, risks: Mapping[str, Float[np.ndarray, " n"]], weights: bootstrap.Weights
) -> AucCurve:
    """AUC at equal shares of the events' times, without the first and the last ones."""
    own = scored.time[scored.event]
    times = np.unique(np.quantile(own, np.linspace(0.1, 0.9, _CURVE)))
    found = {
        name: np.array([metrics.auc_at(scored.time, scored.event, risk, t)[0] for t in times])
        for name, risk in risks.items()
    }
    drawn = [metrics.auc_at(scored.time, scored.event, risks["model"], t, weights)[1:] for t in times]
    intervals = [percentile_interval(one) for one in drawn]
    return AucCurve(times, found, *(np.array([one[side] for one in intervals]) for side in (0, 1)))
