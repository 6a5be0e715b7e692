"""What makes a config fit that does not: each change is estimated anew, none is a rule of thumb."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

from medclip_jax.objectives.towers import scanned
from medclip_jax.planning.chips import CHIPS, Chip
from medclip_jax.planning.estimate import Estimate, estimate
from medclip_jax.planning.shapes import Model, build, remat_choices, remat_policies
from medclip_jax.training.config import apply_override


@dataclass(frozen=True)
class Remedy:
    """Overrides that were tried, and what came of them.

    Attributes:
        overrides: "--config.microbatches=4" and the like.
        estimate: with them.
    """

    overrides: tuple[str, ...]
    estimate: Estimate


def remedies(model: Model, chip: Chip, found: Estimate) -> list[Remedy]:
    """The smallest change of each kind that makes a config fit, else the smallest combination.

    Tried are microbatches (the fewest that suffice), on a TPU blocks without the loop of `scan`, remat
    policies (the fastest that suffices), fsdp (the fewest devices that suffice); if none suffices alone, the
    most thrifty remat policy, without that loop, with the fewest microbatches, and then with fsdp over all
    devices as well.

    Args:
        model: from `planning.shapes.build`.
        chip: what each device is.
        found: the estimate that does not fit.

    Returns:
        Those that fit; the last attempt alone where none does.
    """
    devices = found.devices
    single = [
        remedy
        for remedy in (
            _microbatches(model, chip, found, ()),
            _without_scan(model, chip, devices),
            _remat(model, chip, devices),
            _fsdp(model, chip, found),
        )
        if remedy
    ]
    fitting = [remedy for remedy in single if remedy.estimate.fits]
    if fitting:
        return fitting
    thrifty = tuple(
        f"--config.objective.{name}.remat={choices[1]}"
        for name, choices in remat_choices(model.config.objective).items()
        if len(choices) > 1
    )
    thrifty = (*_scan_overrides(model, chip), *thrifty)
    attempt = None
    for more in ((), (f"--config.mesh.fsdp={devices}", "--config.mesh.data=1")):
        if more and devices == 1:
            continue
        changed = changed_model(model, (*thrifty, *more))
        first = estimate(changed, chip, devices)
        attempt = Remedy((*thrifty, *more), first)
        if not first.fits:
            attempt = _microbatches(changed, chip, first, attempt.overrides) or attempt
        if attempt.estimate.fits:
            break
    return [attempt] if attempt else []


def fewest_microbatches(model: Model, chip: Chip, devices: int) -> Estimate:
    """The estimate with as few microbatches as fit; with as many as there can be where nothing fits.

    Args:
        model: from `planning.shapes.build`; its own number of microbatches does not count.
        chip: what each device is.
        devices: how many.

    Raises:
        ValueError: mesh and batch size do not divide.
    """
    found = estimate(changed_model(model, ("--config.microbatches=1",)), chip, devices)
    if found.fits:
        return found
    fewer = _microbatches(model, chip, found, ())
    return fewer.estimate if fewer else found


def settled(model: Model, chip: Chip, devices: int) -> tuple[Model, Estimate]:
    """The model with a number of microbatches, and its estimate.

    Args:
        model: from `planning.shapes.build`; where its config leaves the microbatches to the memory (0), they
            become as few as fit.
        chip: what each device is.
        devices: how many.

    Raises:
        ValueError: mesh and batch size do not divide.
    """
    if model.config.microbatches:
        return model, estimate(model, chip, devices)
    found = fewest_microbatches(model, chip, devices)
    return changed_model(model, (f"--config.microbatches={found.microbatches}",)), found


def chips_that_hold(found: Estimate) -> list[str]:
    """Names of the chips whose memory would hold an estimate."""
    return [chip.name for chip in CHIPS.values() if found.memory.total <= chip.usable_bytes]


def changed_model(model: Model, overrides: tuple[str, ...]) -> Model:
    """The model of a config with overrides; built again only where the objective changes."""
    config = copy.deepcopy(model.config)
    for override in overrides:
        apply_override(config, override)
    if any(".objective." in override for override in overrides):
        return build(config, model.spec, samples=model.samples)
    return dataclasses.replace(model, config=config)


def _microbatches(model: Model, chip: Chip, found: Estimate, before: tuple[str, ...]) -> Remedy | None:
    """The fewest microbatches that fit, or the most that are possible."""
    share = found.batch_size // found.devices
    counts = [n for n in range(found.microbatches + 1, share + 1) if share % n == 0]
    if not counts:
        return None

    def attempt(count: int) -> Remedy:
        override = f"--config.microbatches={count}"
        return Remedy((*before, override), estimate(changed_model(model, (override,)), chip, found.devices))

    last = attempt(counts[-1])
    if not last.estimate.fits:
        return last
    low, high, best = 0, len(counts) - 1, last
    while low < high:
        middle = (low + high) // 2
        tried = attempt(counts[middle])
        if tried.estimate.fits:
            high, best = middle, tried
        else:
            low = middle + 1
    return best


def _scan_overrides(model: Model, chip: Chip) -> tuple[str, ...]:
    """What takes the towers' blocks out of their loops where these cost memory."""
    names = scanned(model.config.objective) if chip.kind == "tpu" else ()
    return tuple(f"--config.objective.{name}.scan=False" for name in names)


def _without_scan(model: Model, chip: Chip, devices: int) -> Remedy | None:
    """Blocks one after the other instead of in a loop."""
    overrides = _scan_overrides(model, chip)
    if not overrides:
        return None
    return Remedy(overrides, estimate(changed_model(model, overrides), chip, devices))


def _remat(model: Model, chip: Chip, devices: int) -> Remedy | None:
    """The fastest remat policy that fits, else the one that holds least."""
    now, choices = remat_policies(model.config.objective), remat_choices(model.config.objective)
    tried = []
    for policy in dict.fromkeys(policy for known in choices.values() for policy in known[1:]):
        # A tower that does not know it takes the one that holds least.
        taken = {
            name: policy if policy in known else known[1] for name, known in choices.items() if known[1:]
        }
        overrides = tuple(
            f"--config.objective.{name}.remat={value}" for name, value in taken.items() if value != now[name]
        )
        if overrides and overrides not in [remedy.overrides for remedy in tried]:
            tried.append(Remedy(overrides, estimate(changed_model(model, overrides), chip, devices)))
    fitting = [remedy for remedy in tried if remedy.estimate.fits]
    if fitting:
        return min(fitting, key=lambda remedy: remedy.estimate.speed.step)
    return min(tried, key=lambda remedy: remedy.estimate.memory.total, default=None)


def _fsdp(model: Model, chip: Chip, found: Estimate) -> Remedy | None:
    """The fewest devices to split parameters over."""
    best = None
    for parts in range(found.fsdp + 1, found.devices + 1):
        if found.devices % parts:
            continue
        overrides = (f"--config.mesh.fsdp={parts}", f"--config.mesh.data={found.devices // parts}")
        best = Remedy(overrides, estimate(changed_model(model, overrides), chip, found.devices))
        if best.estimate.fits:
            break
    return best
