"""What a run trains on: opened, and compared with what a run was begun on, or a text tower trained with."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from medclip_jax.fields import Layout, held_arrays
from medclip_jax.objectives.base import DataSpec
from medclip_jax.reports.definitions import BUILT_IN, Findings

if TYPE_CHECKING:
    from medclip_jax.shards.read import PreparedInfo

_WORDS = re.compile(r"^text/.*\bwords/")
"""Names of the parameters of which each row belongs to a word."""

_LOOKED_AT = ("shape", "spacing", "findings", "organs", "measurements", "cell", "splits")


class Data(NamedTuple):
    """What a run trains on.

    Attributes:
        source: random access to the records of the training split.
        spec: what the model needs to know.
        tokenizer: None for runs without text.
        definitions: the findings that are known.
    """

    source: Any
    spec: DataSpec
    tokenizer: Any = None
    definitions: Findings = BUILT_IN


def open_data(config: Any, fields: Collection[str]) -> Data:
    """Open the shards and the tokenizer that `config.data` names.

    Args:
        config: `config.data`.
        fields: of a batch, see `Objective.batch_fields`; only what they are made of is decoded.

    Raises:
        ValueError: `config.data.shards` is empty, several sets do not go together, or a field that the shards
            cannot give.
    """
    from medclip_jax.shards.mixture import check_alike, open_training
    from medclip_jax.shards.read import open_configured

    if not config.shards:
        named = " (with config.data.sets, the one to evaluate on)" if config.sets else ""
        raise ValueError(f"config.data.shards is empty: give a folder written by `medclip prepare`{named}")
    info = open_configured(config)
    folder = config.tokenizer or info.tokenizer
    tokenizer = None
    if folder:
        from medclip_jax.reports.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(folder)
    spec = DataSpec.of(info, tokenizer)
    layout = Layout(fields, spec, config, tokenizer, arrays=held_arrays(info), definitions=info.definitions)
    source = open_training(config, layout.reads)
    if config.sets:
        infos = [info, *(one.info for one in source.sources)]
        check_alike(infos)
        _check_tokenizers(config, infos)
        for one in infos:
            Layout(fields, spec, config, tokenizer, arrays=held_arrays(one))
    return Data(source, spec, tokenizer, info.definitions)


def _check_tokenizers(config: Any, infos: Sequence[PreparedInfo]) -> None:
    """Check that it is said which tokenizer is meant, where sets come with different ones.

    Raises:
        ValueError: it is not.
    """
    from medclip_jax.reports.tokenizer import load_tokenizer

    if config.tokenizer:
        return
    found = {load_tokenizer(one.tokenizer).fingerprint if one.tokenizer else "" for one in infos}
    if len(found) > 1:
        raise ValueError(
            "the sets of config.data.sets come with different tokenizers: set config.data.tokenizer to the "
            f"one that the run shall use, such as {str(infos[0].folder / 'tokenizer')!r}"
        )


def check_expectation(config: Any, spec: DataSpec, info: Any | None = None) -> None:
    """Compare shards with what a config expects of them.

    Args:
        config: `config.data`.
        spec: of the shards.
        info: of the prepared folder, None for data that are from none: then shape and spacing alone count.

    Raises:
        ValueError: volumes of another shape, spacing or fit. Another crop or organ cell is only logged.
    """
    expected = config.prepare
    fit = "resize" if None in spec.spacing else "crop"
    if expected.fit not in ("", fit):
        raise ValueError(
            f"config.data.shards={config.shards!r} was prepared with --fit {fit}, and this config is meant "
            f"for {expected.fit!r} (config.data.prepare.fit): prepare with --fit {expected.fit}, or use them "
            "all the same with --config.data.prepare.fit=''"
        )
    for name, found in (("views", spec.views), ("frame_shape", spec.frame_shape)):
        wanted = tuple(expected[name])
        if wanted and wanted != tuple(found):
            raise ValueError(
                f"config.data.shards={config.shards!r} has {name} {tuple(found)}, and this config is meant "
                f"for {wanted} (config.data.prepare.{name}): prepare such, or use them all the same with "
                f"--config.data.prepare.{name}='()'"
            )
    for name, found in (("shape", spec.shape), ("spacing", spec.spacing)):
        wanted = tuple(expected[name])
        given = np.array(found or 0, np.float64)  # None, each volume's own spacing, is no number
        if wanted and not np.allclose(wanted, given, rtol=0, atol=1e-3):
            values = " ".join(f"{number:g}" for number in wanted)
            raise ValueError(
                f"config.data.shards={config.shards!r} holds volumes of {name} {tuple(found)}, and this "
                f"config is meant for {wanted} (config.data.prepare.{name}): prepare with --{name} {values}, "
                f"or use them all the same with --config.data.prepare.{name}='()'"
            )
    there = {"crop": info.settings.get("crop"), "organ_cell": info.cell} if info else {}
    for name, found in there.items():
        if expected[name] and expected[name] != found:
            logging.warning(
                "the shards have %s %r, and this config is meant for %r (config.data.prepare.%s)",
                name, found, expected[name], name,
            )  # fmt: skip


def identify(data: Data) -> dict[str, Any]:
    """What tells these data from others, for the checkpoint; the same wherever the shards lie.

    It is read from `prepare.json`, three records and the tokenizer, so that it costs next to nothing.

    Returns:
        `samples`, the number of records; `shards`, `records` and `tokenizer`, each a hash or None where the
        data are not from a prepared folder.
    """
    info, count = getattr(data.source, "info", None), len(data.source)
    records = None
    if info is not None and count:
        digest = hashlib.sha256()
        for index in (0, count // 2, count - 1):
            digest.update(data.source.raw(index))
        records = digest.hexdigest()
    return {
        "samples": count,
        "shards": getattr(data.source, "fingerprint", None) or getattr(info, "fingerprint", None),
        "records": records,
        "tokenizer": getattr(data.tokenizer, "fingerprint", None),
    }


def check_identity(saved: Mapping[str, Any], data: Data, workdir: Path) -> None:
    """Check that a run continues with the data that it began on.

    A set to which rows were added is another one: sample n of a run is drawn from the full set.

    Args:
        saved: JSON of one of the run's checkpoints. One of an earlier version does not say all: what it
            leaves out is compared with the copies in the workdir.
        data: to continue with.
        workdir: of the run.

    Raises:
        ValueError: they are others; the message says in what they differ.
    """
    from medclip_jax.reports.tokenizer import load_tokenizer
    from medclip_jax.shards.read import ShardError, open_shards
    from medclip_jax.training.workdir import TOKENIZER

    now = identify(data)
    kept: PreparedInfo | None = None
    try:
        kept = open_shards(workdir)
    except ShardError as error:
        if now["shards"]:
            logging.warning("%s holds no copy of its shards' settings to compare with: %s", workdir, error)
    before = {name: saved.get(name) for name in now}
    if "shards" not in saved and now["shards"]:
        logging.warning(
            "the checkpoints in %s are of an earlier version and do not say which data they were trained on: "
            "the copies of prepare.json and tokenizer there are taken for it", workdir,
        )  # fmt: skip
        before["shards"] = kept.fingerprint if kept else None
        with suppress(FileNotFoundError, ValueError):
            before["tokenizer"] = load_tokenizer(workdir / TOKENIZER).fingerprint
    if before["samples"] != now["samples"]:
        changes = [f"{before['samples']} training samples there, {now['samples']} now"]
    else:
        # Where one side does not say, there is nothing to compare.
        changes = [
            f"{what} are others" if name != "tokenizer" else "the tokenizer is another one"
            for name, what in (("shards", "the shards"), ("records", "the records"), ("tokenizer", ""))
            if before[name] and now[name] and before[name] != now[name]
        ]
        if "the shards are others" in changes and kept is not None:
            info = data.source.info
            changes += [
                f"{name}: {getattr(kept, name)!r} there, {getattr(info, name)!r} now"
                for name in _LOOKED_AT
                if getattr(kept, name) != getattr(info, name)
            ]
    if changes:
        raise ValueError(
            f"the run in {workdir} was begun on other data:\n  " + "\n  ".join(changes) + "\n"
            "Give it the same shards and tokenizer (config.data.shards, config.data.tokenizer, and the sets "
            "and weights of config.data.sets), wherever they lie, or a new --workdir (with "
            "config.initial_weights.workdir set to this one to start from "
            "its weights)"
        )


def check_vocabulary(config: Any, data: Data, settled: Collection[str], words: Collection[str]) -> None:
    """Check that the text tower's weights belong to the tokenizer's vocabulary: same word, same id.

    Vocabularies of one size, or one that fits into the other, are told apart. Which words the weights were
    trained with, the tokenizer beside them says.

    Args:
        config: of a run that begins.
        data: of the run.
        settled: names of the parameters that `config.initial_weights` gives.
        words: names of all parameters.

    Raises:
        ValueError: they do not belong together; the message says which option to set.
    """
    tables = [name for name in words if _WORDS.search(name)]
    if not tables or not getattr(data.tokenizer, "vocabulary", None):
        return
    given = config.objective.get("text", {}).get("folder", "")
    initial = config.initial_weights.workdir
    if any(name in settled for name in tables):
        source, option = initial, "config.initial_weights.workdir"
        folder = _tokenizer_of_run(initial)
        otherwise = ", or leave the text tower out of config.initial_weights.include"
    elif given:
        source, option = given, "config.objective.text.folder"
        folder = _located(given)
        otherwise = ", or prepare the shards with --tokenizer set to it"
    else:
        return
    own = f"config.data.tokenizer={config.data.tokenizer!r}"
    if not config.data.tokenizer:
        own = f"the tokenizer of the shards, {config.data.shards!r}"
    trained = _is_trained(data) and not config.data.tokenizer
    theirs = _vocabulary(folder)
    if theirs is None:
        if trained and option == "config.objective.text.folder":
            raise ValueError(
                f"{option}={source!r} comes without a tokenizer, and {own} was trained by `medclip prepare`, "
                "so that its ids mean other words there: set config.data.tokenizer to the folder of the "
                "tokenizer that the text encoder was trained with"
            )
        logging.warning(
            "%s=%r comes without a tokenizer: that its words have the ids of %s is taken for granted",
            option, source, own,
        )  # fmt: skip
        return
    difference = _difference(theirs, data.tokenizer.vocabulary)
    if difference:
        raise ValueError(
            f"{option}={source!r} was trained with another vocabulary than that of {own}: {difference}. Set "
            f"config.data.tokenizer={str(folder)!r}{otherwise}"
        )


def _difference(theirs: Mapping[str, int], own: Mapping[str, int]) -> str:
    """A word whose id differs, in words; "" where there is none. Words of one side alone do no harm."""
    words = {index: word for word, index in theirs.items()}
    for word, index in sorted(own.items(), key=lambda item: item[1]):
        if theirs.get(word, index) != index:
            return f"the word {word!r} has id {theirs[word]} there and {index} here"
        if words.get(index, word) != word:
            return f"id {index} is {words[index]!r} there and {word!r} here"
    return ""


def _vocabulary(folder: Path | None) -> Mapping[str, int] | None:
    """Word to id of the tokenizer in a folder, None where there is none that can be read."""
    from medclip_jax.reports.tokenizer import load_tokenizer

    if folder is None:
        return None
    try:
        return load_tokenizer(folder).vocabulary
    except (FileNotFoundError, ValueError):
        return None


def _located(name: str) -> Path | None:
    from medclip_jax.hub import locate
    from medclip_jax.weights.exported import TOKENIZER_FILES

    return locate(name, weights=False, more=TOKENIZER_FILES)


def _tokenizer_of_run(name: str) -> Path | None:
    """The tokenizer beside initial weights: a workdir keeps it in a folder, an export among its own files."""
    from medclip_jax.training.workdir import TOKENIZER

    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _located(name)
    return folder / TOKENIZER if (folder / TOKENIZER).is_dir() else folder


def _is_trained(data: Data) -> bool:
    """Whether `prepare` trained the tokenizer on the set's own texts."""
    settings = getattr(getattr(data.source, "info", None), "settings", {})
    return settings.get("tokenizer") == "train"
