"""AdamW with a schedule, regex rules for freezing, learning rates and weight decay, and accumulation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from medclip_jax.parameters import Tree, flatten, unflatten


class Optimizer(NamedTuple):
    """What turns gradients into updates.

    Attributes:
        transformation: optax's; sees only the parameters that are trained.
        learning_rate: of the batch with this index, before multipliers.
        trained: paths of the parameters that are not frozen.
    """

    transformation: optax.GradientTransformation
    learning_rate: Callable[[Int[Array, ""]], Float[Array, ""]]
    trained: frozenset[str]


def make_schedule(config: Any, updates: int) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """Linear warm-up to the peak, then cosine, linear or constant to `final_fraction` of it.

    The warm-up takes `warmup_steps`, or `warmup_fraction` of all updates. Its first update has 1/warmup_steps
    of the peak; the final fraction is where the update after the last one would be, so that none is spent
    at 0.

    Args:
        config: `config.optimizer`.
        updates: number of updates of the whole run (batches / accumulate).

    Raises:
        ValueError: unknown schedule, or a warm-up longer than the run.
    """
    if config.schedule not in ("cosine", "linear", "constant"):
        raise ValueError(
            f"config.optimizer.schedule={config.schedule!r}: there are 'cosine', 'linear', 'constant'"
        )
    warmup = config.warmup_steps // config.accumulate or round(config.warmup_fraction * updates)
    if warmup > updates:
        raise ValueError(
            f"config.optimizer.warmup_steps={config.warmup_steps} is longer than the run "
            f"({updates * config.accumulate} steps): train longer, or warm up for a share of the run by "
            "--config.optimizer.warmup_steps=0 --config.optimizer.warmup_fraction=0.05"
        )
    peak, final, kind = config.learning_rate, config.final_fraction, config.schedule

    def schedule(count: Int[Array, ""]) -> Float[Array, ""]:
        count = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum(1.0, (count + 1.0) / warmup) if warmup else 1.0
        done = jnp.clip((count - warmup) / max(1, updates - warmup), 0.0, 1.0)
        fall = {"cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * done)), "linear": 1.0 - done, "constant": 1.0}[kind]
        if kind != "constant":
            fall = final + (1.0 - final) * fall
        return peak * rise * fall

    return schedule


def make_optimizer(config: Any, params: Tree, steps: int) -> Optimizer:
    """AdamW as `config.optimizer` describes it.

    Order: gradient clipping by global norm → Adam → decoupled weight decay → multipliers → learning
    rate. With `accumulate = k`, k batches' gradients are averaged into one update (`optax.MultiSteps`).
    That equals one large batch only for losses that are means over samples; a contrastive loss sees the
    negatives of each small batch alone.

    Args:
        config: `config.optimizer`.
        params: of the objective; arrays or shapes.
        steps: batches of the whole run.

    Raises:
        ValueError: a regex is malformed or matches no parameter (the rules that `no_decay` starts with
            may), everything is frozen, or a number is out of range.

    References:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2.
    """
    from medclip_jax.training.config import DEFAULT_NO_DECAY

    if config.accumulate < 1:
        raise ValueError(f"config.optimizer.accumulate={config.accumulate} must be at least 1")
    names = list(flatten(params))
    frozen = matching(config.frozen, names, "config.optimizer.frozen")
    trained = [name for name in names if name not in frozen]
    if not trained:
        raise ValueError("config.optimizer.frozen freezes every parameter: nothing is left to train")
    no_decay = matching(
        config.no_decay, trained, "config.optimizer.no_decay", may_miss=DEFAULT_NO_DECAY, known=names
    )
    factors = dict.fromkeys(trained, 1.0)
    # Backwards, so that the first match has the last word.
    for pattern, factor in reversed(tuple(config.multipliers)):
        hits = matching([pattern], trained, "config.optimizer.multipliers")
        factors.update(dict.fromkeys(hits, float(factor)))

    schedule = make_schedule(config, max(1, -(-steps // config.accumulate)))
    chain = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    chain.append(optax.scale_by_adam(b1=config.betas[0], b2=config.betas[1], eps=config.epsilon))
    if config.weight_decay:
        mask = unflatten({name: name not in no_decay for name in trained})
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=mask))
    if any(factor != 1.0 for factor in factors.values()):
        chain.append(_scale_each(unflatten(factors)))
    chain.append(optax.scale_by_learning_rate(schedule))
    transformation = optax.chain(*chain)
    if config.accumulate > 1:
        transformation = optax.MultiSteps(transformation, config.accumulate).gradient_transformation()
    return Optimizer(transformation, lambda step: schedule(step // config.accumulate), frozenset(trained))


def matching(
    patterns: Iterable[str],
    names: Sequence[str],
    where: str,
    *,
    may_miss: Iterable[str] = (),
    known: Sequence[str] = (),
) -> set[str]:
    """The names in which one of the patterns is found (`re.search`).

    Args:
        patterns: regular expressions.
        names: "path/to/parameter".
        where: the config key that the patterns come from, for the message.
        may_miss: patterns that need not match.
        known: further names on which a pattern may spend itself without error (frozen ones).

    Raises:
        ValueError: a malformed pattern, or one that matches nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        try:
            regex = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"{where}: {pattern!r} is no regular expression ({error})") from None
        hits = {name for name in names if regex.search(name)}
        if not hits and pattern not in may_miss and not any(regex.search(name) for name in known):
            literal = re.sub(r"[\^$\\().*+?|\[\]]", "", pattern)
            near = difflib.get_close_matches(literal, [*names, *_prefixes(names)], n=3, cutoff=0.3)
            raise ValueError(
                f"{where}: {pattern!r} matches no parameter. Near: {', '.join(near) or ', '.join(names[:5])}"
            )
        found |= hits
    return found


def _prefixes(names: Sequence[str]) -> list[str]:
    return sorted({"/".join(name.split("/")[:n]) for name in names for n in range(1, name.count("/") + 1)})


def _scale_each(factors: Tree) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))
