"""Sets in object stores: written, resumed, read, and refused, against a store on this machine."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medclip_jax.corpora.folder import folder
from medclip_jax.shards import fetch, publish, store
from medclip_jax.shards.prepare import prepare
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import ShardError
from tests.shards.small_set import QUIET, SETTINGS, digest


@pytest.fixture(autouse=True)
def own_cache_and_short_waits(own_cache, monkeypatch):
    monkeypatch.setattr(store, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture(scope="module")
def made(archive, tmp_path_factory):
    """A finished set of several shards on this machine."""
    out = tmp_path_factory.mktemp("made") / "set"
    prepare(folder(archive), out, SETTINGS, **QUIET)
    return out


def copied(cache: Path) -> dict[str, str]:
    (found,) = (path for path in cache.iterdir() if path.is_dir())
    return digest(found)


def read_all(url: str) -> None:
    info = open_shards(url)
    for split in info.splits:
        assert len([sample["id"] for sample in open_split(info, split)]) == info.splits[split]


def test_a_set_comes_back_bit_equal(made, s3, tmp_path):
    url = f"{s3}/whole"
    publish.publish(made, url, progress=False)
    info = open_shards(url)
    # Nothing but what describes the set has been copied so far.
    assert not list(info.folder.glob("*.array_record*"))
    assert info.fingerprint == open_shards(made).fingerprint
    test = open_split(info, "test")
    assert {path.name for path in info.folder.glob("*.array_record*")} == {
        name for name in info.files if "-test." in name
    }
    assert test[0]["report"]
    read_all(url)
    assert copied(tmp_path / "cache") == digest(made)


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_other_stores(made, scheme, tmp_path):
    url = f"memory://{tmp_path.name}/set" if scheme == "memory" else f"file://{tmp_path}/there/set"
    publish.publish(made, url, progress=False)
    read_all(url)
    assert copied(tmp_path / "cache") == digest(made)


_KILLED = """
import os, signal, sys
from pathlib import Path
from medclip_jax.shards import publish, store
put = store.Store.put
count = 0
def counted(self, file, name):
    global count
    put(self, file, name)
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
store.Store.put = counted
publish._AT_ONCE = 1
publish.publish(Path(sys.argv[1]), sys.argv[2], progress=False)
"""


def test_a_killed_upload_continues(made, s3, tmp_path, monkeypatch):
    url = f"{s3}/killed"
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(made), url], capture_output=True, timeout=600)
    assert ended.returncode == -signal.SIGKILL
    with pytest.raises(ShardError, match="is not complete"):
        open_shards(url)
    sent, put = [], store.Store.put
    monkeypatch.setattr(
        store.Store, "put", lambda self, file, name: (sent.append(name), put(self, file, name))
    )
    publish.publish(made, url, progress=False)
    shards = open_shards(made).files
    # Three were sent, and the last of them was not yet noted down.
    assert len([name for name in sent if name in shards]) == len(shards) - 2
    assert sent[-1] == fetch.SETTINGS_FILE
    read_all(url)
    assert copied(tmp_path / "cache") == digest(made)
    sent.clear()
    publish.publish(made, url, progress=False)
    assert not set(sent) & set(shards)


def test_a_truncated_object_is_noticed_and_put_back(made, s3):
    url = f"{s3}/truncated"
    publish.publish(made, url, progress=False)
    there = store.open_store(url)
    name = next(name for name in open_shards(made).files if "-train." in name)
    there.write(name, (made / name).read_bytes()[:-7])
    with pytest.raises(ShardError, match=f"{name}.* bytes instead of .*truncated"):
        open_split(url, "train")
    assert not list(open_shards(url).folder.glob(f"{name}*"))
    publish.publish(made, url, progress=False)
    assert len(open_split(url, "train")) > 0


def test_a_changed_object_is_noticed(made, s3):
    url = f"{s3}/changed"
    publish.publish(made, url, progress=False)
    name = next(name for name in open_shards(made).files if "-train." in name)
    data = bytearray((made / name).read_bytes())
    data[len(data) // 2] ^= 1
    store.open_store(url).write(name, bytes(data))
    with pytest.raises(ShardError, match=f"{name}.* checksum"):
        open_split(url, "train")


def test_another_set_is_not_written_over(made, s3, archive, tmp_path):
    url = f"{s3}/other"
    there = store.open_store(url)
    there.write("notes.txt", b"mine")
    with pytest.raises(ShardError, match="holds other files"):
        publish.publish(made, url, progress=False)
    there.remove("notes.txt")
    publish.publish(made, url, progress=False)
    prepare(folder(archive).first(4), tmp_path / "few", SETTINGS, **QUIET)
    with pytest.raises(ShardError, match="other studies, settings or another key"):
        publish.publish(tmp_path / "few", url, progress=False)
    read_all(url)


def test_errors_say_what_to_do_and_hold_no_secret(made, s3, monkeypatch):
    with pytest.raises(ShardError, match="there is no bucket 'nobucket'"):
        publish.check_target("s3://nobucket/set")
    with pytest.raises(ShardError, match="there is no bucket 'nobucket'"):
        open_shards("s3://nobucket/set")
    with pytest.raises(ShardError, match="no prepared set at"):
        open_shards(f"{s3}/nothing")
    with pytest.raises(ShardError, match="names no folder"):
        open_shards("s3://scans")
    with pytest.raises(ShardError, match="nothing knows nowhere://"):
        open_shards("nowhere://scans/set")
    with pytest.raises(ShardError, match="user name, password or query") as refused:
        open_shards("s3://who:verysecret@scans/set")
    assert "verysecret" not in str(refused.value)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ShardError, match=r"pip install 'medclip-jax\[gcs\]'"):
        open_shards("gs://scans/set")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError("denied for who"), r"access denied \(403\)"),
        (type("NoCredentialsError", (Exception,), {})("who"), "no credentials"),
        (ConnectionError("who"), r"after 5 attempts \(ConnectionError\)"),
    ],
)
def test_what_the_store_answers_becomes_plain(made, s3, monkeypatch, error, says):
    there = store.open_store(f"{s3}/set")
    calls = []

    def fail(*_):
        calls.append(1)
        raise error

    monkeypatch.setattr(there.files, "cat_file", fail)
    with pytest.raises(ShardError, match=says) as told:
        there.read("prepare.json")
    assert len(calls) == (5 if isinstance(error, ConnectionError) else 1)
    assert "who" not in str(told.value).replace("whole", "")


def test_what_fails_once_is_tried_again(made, s3, monkeypatch, tmp_path):
    url = f"{s3}/again"
    failures = {"put_file": 2, "get_file": 2}

    def flaky(name, whole):
        def call(*args, **more):
            if failures[name]:
                failures[name] -= 1
                raise ConnectionError("reset")
            return whole(*args, **more)

        return call

    files = store.open_store(url).files
    for name in failures:
        monkeypatch.setattr(files, name, flaky(name, getattr(files, name)))
    publish.publish(made, url, progress=False)
    read_all(url)
    assert failures == {"put_file": 0, "get_file": 0}
    assert copied(tmp_path / "cache") == digest(made)


def test_a_store_that_is_away_leaves_the_copy(made, s3, monkeypatch, capsys):
    url = f"{s3}/away"
    publish.publish(made, url, progress=False)
    read_all(url)
    fetch.fetch_set.cache_clear()

    def away(*_):
        raise ConnectionError

    monkeypatch.setattr(store.open_store(url).files, "cat_file", away)
    read_all(url)
    assert "is used as it is" in capsys.readouterr().err


_READ = """
import sys
from medclip_jax.shards.read import open_split
print(len(open_split(sys.argv[1], "train")))
"""


def test_processes_at_once_copy_a_set_once(made, s3, tmp_path):
    url = f"{s3}/shared"
    publish.publish(made, url, progress=False)
    command = [sys.executable, "-c", _READ, url]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    ended = [reader.communicate(timeout=600) for reader in readers]
    count = open_shards(made).splits["train"]
    assert [out.decode().strip() for out, _ in ended] == [str(count)] * 2
    # Who had to copy has drawn a bar, or a line at its end; nothing is left half copied.
    assert sum(b"fetch" in errors for _, errors in ended) == 1
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_room_is_made_by_sets_that_nobody_reads(made, s3, tmp_path, monkeypatch):
    urls = [f"{s3}/room{index}" for index in range(3)]
    for url in urls:
        publish.publish(made, url, progress=False)
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    monkeypatch.setenv(fetch.LIMIT_VARIABLE, str(2.2 * size / 1e9))
    read_all(urls[0])
    for file in fetch._in_use.values():  # what the end of the process that reads it does
        file.close()
    fetch._in_use.clear()
    for url in urls[1:]:
        read_all(url)
    kept = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert {path.name.split("-")[0] for path in kept} == {"room1", "room2"}
    monkeypatch.setenv(fetch.LIMIT_VARIABLE, str(0.5 * size / 1e9))
    fourth = f"{s3}/room3"
    publish.publish(made, fourth, progress=False)
    with pytest.raises(ShardError, match=fetch.FOLDER_VARIABLE):
        read_all(fourth)


def test_a_set_of_a_copied_folder_is_read_too(made, tmp_path):
    """As other tools copy it: without checksums, by sizes alone."""
    shutil.copytree(made, tmp_path / "there")
    url = f"file://{tmp_path}/there"
    read_all(url)
    assert copied(tmp_path / "cache") == digest(made)
