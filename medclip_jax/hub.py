"""Models by folder or by hub id: where their files lie on this machine."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What a model folder may keep its weights in; the first that exists is read."""


HUB_PREFIX = "hf://"
"""Marks a name as one on the hub, whatever folders there are here."""

_OWN_FOLDERS = {
    "checkpoints", "data", "embeddings", "exported", "exports", "models", "out", "output", "outputs",
    "results", "runs", "scans", "shards", "weights", "workdir", "workdirs",
}  # fmt: skip
"""What our documentation and most people call the folders of their work: no owners on the hub."""

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")

_SECONDS = 10
"""How long the hub may take to answer."""

_SHOWN = 5
"""Folders that an error message lists."""


def locate(name: str | os.PathLike, *, weights: bool = True, more: Sequence[str] = ()) -> Path:
    """Turn a folder or a hub id into a local folder.

    No path is ever sent to the hub, as it may name a hospital or a patient: only ``hf://owner/name``, and
    ``owner/name`` where it cannot be a mistyped path, see `hub_id`. What lies in the hub client's cache is
    taken from there without asking the network, so that a run starts alike on every day; weights are always
    of the same revision as the config beside them. The hub is asked once; where there is no way there, that
    is said at once.

    Args:
        name: a folder, or "hf://owner/name" or "owner/name" on the Hugging Face hub.
        weights: whether its weights are needed, too; else `config.json` is enough.
        more: further files to fetch, of those that the model has.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: no such folder, and no such model on the hub, or no right to it, or no way there.
            The message says what there is nearby.
    """
    found = hub_id(name)
    if found is None:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder
        raise FileNotFoundError(
            f"{name} is no folder{nearby(folder)}. Give a folder, or a model on the Hugging Face hub as "
            f"{HUB_PREFIX}owner/name"
        )
    config = _download(found, "config.json", None)
    if config is None:
        raise FileNotFoundError(f"{found} on the hub holds no config.json: it is no model of transformers")
    if weights:
        _download_weights(found, config.parent)
    for file in more:
        _download(found, file, config.parent.name)
    return config.parent


def hub_id(name: str | os.PathLike) -> str | None:
    """The "owner/name" on the hub that is meant; None where a folder of this machine is.

    ``hf://owner/name`` is always one. ``owner/name`` is one unless something of that name, or of the owner's,
    lies here, or a folder with nearly the owner's name does, or the owner is called as folders are
    ("runs"). Everything else is a path: absolute ones and those with a drive, a backslash, ``.``, ``..`` or
    ``~``, with no slash or more than one, and every `pathlib.Path`.

    Args:
        name: what a person gave.

    Raises:
        FileNotFoundError: ``hf://`` with something else behind it, or a web address.
    """
    if not isinstance(name, str):
        return None
    if name.startswith(HUB_PREFIX):
        found = name.removeprefix(HUB_PREFIX).rstrip("/")
        if not _HUB_ID.fullmatch(found):
            raise FileNotFoundError(f"{name} names no model on the hub: write {HUB_PREFIX}owner/name")
        return found
    if "://" in name:
        raise FileNotFoundError(
            f"{name} is a web address: download the model and give its folder, or write "
            f"{HUB_PREFIX}owner/name for one on the Hugging Face hub"
        )
    if not _HUB_ID.fullmatch(name) or ".." in name:
        return None
    owner = name.partition("/")[0]
    if owner.lower() in _OWN_FOLDERS or os.path.lexists(owner):
        return None
    folders = [folder.lower() for folder in _folders(Path("."))]
    return None if difflib.get_close_matches(owner.lower(), folders, n=1, cutoff=0.75) else name


def nearby(path: Path) -> str:
    """What lies where a path ends to exist, for an error message; "" where nothing does.

    Args:
        path: of something that is not there.
    """
    known = path
    while not known.is_dir() and known != known.parent:
        known = known.parent
    missing = path.relative_to(known).parts
    folders = _folders(known)
    if not missing or not folders:
        return ""
    lower = {folder.lower(): folder for folder in folders}
    near = difflib.get_close_matches(missing[0].lower(), lower, n=_SHOWN, cutoff=0.6)
    shown = [known / lower[folder] for folder in near]
    whole = [whole for folder in shown if (whole := folder.joinpath(*missing[1:])).is_dir()]
    if shown:
        return f": did you mean {' or '.join(map(str, whole or shown))}?"
    more = f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
    return f": {known.absolute()} holds {', '.join(folders[:_SHOWN])}{more}"


def _folders(place: Path) -> list[str]:
    """Names of the folders in a folder, hidden ones left out."""
    try:
        return sorted(entry.name for entry in place.iterdir() if entry.name[0] != "." and entry.is_dir())
    except OSError:
        return []


def _download_weights(name: str, folder: Path) -> None:
    """See that weights lie in the client's folder of one revision."""
    import json

    revision = folder.name
    # What is there already is requested first: enough without a network.
    for file in sorted(WEIGHT_FILES, key=lambda file: not (folder / file).exists()):
        found = _download(name, file, revision)
        if found is None:
            continue
        if file.endswith(".index.json"):
            for part in sorted(set(json.loads(found.read_text())["weight_map"].values())):
                if _download(name, part, revision) is None:
                    raise FileNotFoundError(f"{name} on the hub lacks {part}, which its {file} names")
        return
    raise FileNotFoundError(f"{name} on the hub holds none of {', '.join(WEIGHT_FILES)}")


def _download(name: str, file: str, revision: str | None) -> Path | None:
    """A file in the hub client's cache, None where the model has no such file."""
    from huggingface_hub import hf_hub_download, is_offline_mode, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    cached = try_to_load_from_cache(name, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    by_hand = (
        f"download it where there is a network (hf download {name} --local-dir FOLDER) and give that folder"
    )
    offline = is_offline_mode()
    try:
        with _without_network(offline or not _answers(name, file, revision)):
            return Path(hf_hub_download(name, file, revision=revision))
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{name} is gated: accept its terms on https://huggingface.co/{name} and log in with "
            f"`hf auth login` (or set HF_TOKEN); or {by_hand}"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name} is neither a folder here nor a model on the hub, or it is private: check the name, "
            "and log in with `hf auth login` (or set HF_TOKEN) if it is private"
        ) from error
    except LocalEntryNotFoundError as error:
        if offline:
            raise FileNotFoundError(
                f"{name} is no folder, HF_HUB_OFFLINE is set, and the hub's cache lacks its {file}: unset "
                f"it, or {by_hand}"
            ) from error
        raise FileNotFoundError(
            f"{name} is no folder, and the hub cannot be reached for its {file}: {by_hand}"
        ) from error
    except EntryNotFoundError:
        return None
    except Exception as error:
        raise FileNotFoundError(
            f"{name} is no folder, and the hub did not give its {file} ({type(error).__name__}): {by_hand}"
        ) from error


def _answers(name: str, file: str, revision: str | None) -> bool:
    """Whether the hub answers one request.

    Left to itself its client asks six times, over 25 seconds, before it says that there is no way.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, file, revision=revision), timeout=_SECONDS)
    except HfHubHTTPError as error:  # "not found" and the like are answers; the download tells them apart
        return error.response.status_code < 500 and error.response.status_code != 429
    except Exception:
        return False
    return True


@contextmanager
def _without_network(off: bool) -> Iterator[None]:
    """Within, the hub's client takes what its cache holds and makes no request, where `off`."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or off
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
