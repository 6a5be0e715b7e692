"""Models by folder or by hub id: where their files lie on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What a model folder may keep its weights in; the first that exists is read."""


def locate(name: str | Path, *, weights: bool = True, more: Sequence[str] = ()) -> Path:
    """Turn a folder or a hub id into a local folder.

    What lies in the hub client's cache is taken from there without asking the network, so that a run starts
    alike on every day; weights are always of the same revision as the config beside them.

    Args:
        name: a folder, or "owner/name" on the Hugging Face hub.
        weights: whether its weights are needed, too; else `config.json` is enough.
        more: further files to fetch, of those that the model has.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: no such folder, and no such model on the hub, or no right to it, or no way there.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    name = str(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(
            f"{name} is no folder: give one saved by transformers, or a hub id 'owner/name'"
        )
    config = _download(name, "config.json", None)
    if config is None:
        raise FileNotFoundError(f"{name} on the hub holds no config.json: it is no model of transformers")
    if weights:
        _download_weights(name, config.parent)
    for file in more:
        _download(name, file, config.parent.name)
    return config.parent


def _download_weights(name: str, folder: Path) -> None:
    """See that weights lie in the client's folder of one revision."""
    import json

    revision = folder.name
    # What is there already is asked for first: enough without a network.
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
    try:
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
        if is_offline_mode():
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
