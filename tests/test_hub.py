"""Folders and hub ids: what is asked of the hub's client, and what a user is told."""

import json
import shutil

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from medclip_jax.hub import hub_id, locate

NAME = "some/model"
RESPONSE = httpx.Response(403, request=httpx.Request("HEAD", "https://huggingface.co"))


class Hub:
    """Stands in for the network below the client's `hf_hub_download`: a repository of a few files."""

    def __init__(self, cache, files):
        self.cache, self.files, self.asked = cache, files, []

    def download(self, name, file, revision=None):
        assert name == NAME
        assert revision in (None, "c" * 40)
        self.asked.append(file)
        if file not in self.files:
            raise RemoteEntryNotFoundError(file, response=RESPONSE)
        target = self.cache / "models--some--model" / "snapshots" / ("c" * 40) / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.files[file])
        return str(target)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub(tmp_path / "cache", {"config.json": "{}"})
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda name, file, revision=None: next(map(str, (tmp_path / "cache").rglob(file)), None),
    )
    return hub


def failing(monkeypatch, error):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def test_a_folder_is_itself(tmp_path, hub):
    assert locate(tmp_path) == tmp_path
    assert not hub.asked


def test_config_alone_for_the_sizes(hub):
    assert (locate(NAME, weights=False) / "config.json").exists()
    assert hub.asked == ["config.json"]


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_the_first_kind_of_weights_that_there_is(hub, file):
    hub.files[file] = "weights"
    assert (locate(NAME) / file).read_text() == "weights"
    assert hub.asked[-1] == file
    asked = len(hub.asked)
    locate(NAME)
    assert "config.json" not in hub.asked[asked:]  # the cache has it: not asked again
    assert file not in hub.asked[asked:]


def test_weights_in_parts(hub):
    parts = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}
    hub.files |= dict.fromkeys(parts.values(), "part")
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": parts})
    folder = locate(NAME)
    assert {path.name for path in folder.glob("model-*")} == set(parts.values())
    shutil.rmtree(folder)
    del hub.files["model-2.safetensors"]
    with pytest.raises(FileNotFoundError, match=r"lacks model-2\.safetensors"):
        locate(NAME)


def test_a_repository_without_model(hub):
    with pytest.raises(FileNotFoundError, match=r"holds none of model\.safetensors"):
        locate(NAME)
    shutil.rmtree(hub.cache)
    del hub.files["config.json"]
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        locate(NAME)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("no", response=RESPONSE), r"is gated: accept its terms .* `hf auth login`"),
        (RepositoryNotFoundError("no", response=RESPONSE), r"or it is private: .* `hf auth login`"),
        (LocalEntryNotFoundError("no"), r"cannot be reached .*hf download some/model --local-dir FOLDER"),
        (TimeoutError(), r"TimeoutError.*hf download some/model --local-dir FOLDER"),
    ],
)
def test_what_stands_in_the_way_is_said(hub, monkeypatch, error, message):
    failing(monkeypatch, error)
    with pytest.raises(FileNotFoundError, match=message):
        locate(NAME)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The folder that a person works in: runs, and models of a hospital."""
    for folder in ("work/runs/clip-a", "work/runs/mae", "work/st-marys/heart-2024", "work/.hidden"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize(
    "name",
    ["runs/nowhere", "runs/clip-a/", "st-marys/hart", "st-mary/heart-2024", "St-Marys/heart", "a/b/c",
     "absent", "/data/heart", "./st/heart", "../st/heart", "~/heart", "st\\heart", "C:/heart", "C:\\heart",
     "outputs/x", "-a/b", ".hidden/b", "a/..", "Sankt-Jürgen/herz", "a b/c", "", "."],
)  # fmt: skip
def test_a_path_never_leaves_this_machine(name, work, hub):
    assert hub_id(name) is None
    if not (work / name).exists():
        with pytest.raises(FileNotFoundError, match=r"is no folder.* hf://owner/name"):
            locate(name)
    assert not hub.asked
    assert hub_id(work / "some" / "model") is hub_id(type(work)("some/model")) is None


def test_what_is_an_id(work, hub):
    for name in (NAME, "hf://" + NAME, f"hf://{NAME}/"):
        assert hub_id(name) == NAME
    assert (locate("hf://" + NAME, weights=False) / "config.json").exists()
    (work / "some").mkdir()
    assert hub_id(NAME) is None  # a typing error in a path by now
    assert hub_id("hf://" + NAME) == NAME
    assert hub_id("hf://runs/clip") == "runs/clip"
    for name in ("hf://some", "hf://a/b/c", "https://huggingface.co/some/model", "s3://bucket/model"):
        with pytest.raises(FileNotFoundError, match="hf://owner/name"):
            hub_id(name)


def test_what_lies_nearby_is_named(work, hub):
    with pytest.raises(FileNotFoundError, match=r"did you mean runs/clip-a\?"):
        locate("runs/clip_a")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*/st-marys/heart-2024\?"):
        locate(work / "st-maryes" / "heart-2024")
    with pytest.raises(FileNotFoundError, match=r"runs/nowhere is no folder: .*runs holds clip-a, mae\."):
        locate("runs/nowhere")


def test_one_attempt(work, hub, monkeypatch):
    """The client's own way out of an error would be five more."""
    attempts = []

    def unreachable(url, timeout):
        attempts.append(url)
        raise OSError("no such host")

    def download(*_, **__):
        assert huggingface_hub.constants.HF_HUB_OFFLINE
        raise LocalEntryNotFoundError("no")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match="cannot be reached"):
        locate(NAME)
    assert len(attempts) == 1
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_the_real_client_offline(monkeypatch, tmp_path):
    """What HF_HUB_OFFLINE=1 does, and that a model in the cache is found then."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"HF_HUB_OFFLINE is set.* --local-dir FOLDER"):
        locate(NAME)
    cached = tmp_path / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("c" * 40)
    snapshot = cached / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert locate(NAME, weights=False) == snapshot
    with pytest.raises(FileNotFoundError, match=r"lacks its model\.safetensors"):
        locate(NAME)
    (snapshot / "pytorch_model.bin").write_text("weights")
    assert locate(NAME) == snapshot
