"""Where compiled programs are kept, and when they are not."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from medclip_jax.training.compilation import LARGEST_BYTES, default_folder, use_compilation_cache

KEYS = ("jax_enable_compilation_cache", "jax_compilation_cache_dir", "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs")  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_decided(monkeypatch, tmp_path):
    """JAX as it is without any setting; afterwards as it was."""
    before = {key: getattr(jax.config, key) for key in KEYS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_compilation_cache_max_size", -1)
    yield
    for key, value in before.items():
        jax.config.update(key, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()


def test_in_the_cache_folder_of_the_user(tmp_path):
    folder = use_compilation_cache()
    assert folder == default_folder()
    assert folder.is_relative_to(tmp_path / "cache/medclip-jax/xla")
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_compilation_cache_max_size == LARGEST_BYTES
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert jax.jit(lambda x: x * 3.25 + 1)(2.0) == 7.5
    assert any(folder.iterdir())
    assert use_compilation_cache() == folder


def test_a_folder_of_ones_own_and_none_at_all(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))  # as the variable does
    assert use_compilation_cache() == tmp_path / "mine"
    assert jax.config.jax_compilation_cache_max_size == -1
    jax.config.update("jax_enable_compilation_cache", False)
    assert use_compilation_cache() is None


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None
    assert jax.jit(lambda x: x * 4.25)(2.0) == 8.5
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # not allowed by the convention
    assert default_folder().is_relative_to(Path.home() / ".cache")


@pytest.mark.parametrize(("devices", "kept"), [(1, True), (2, False)])
@pytest.mark.parametrize("given", [None, "mine"])
def test_several_cpu_devices_keep_none_whoever_asks(devices, kept, given, tmp_path):
    """Read from disk, their programs hang: devices take collectives in different orders."""
    folder = tmp_path / (given or "cache")
    script = f"""
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", {devices})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
assert jax.jit(lambda x: x + 1)(2.0) == 3  # JAX settles on what it does with programs at the first of them
from medclip_jax.training.compilation import use_compilation_cache
assert (use_compilation_cache() is not None) is {kept}
assert jax.jit(lambda x: x * 3.25 + 1)(2.0) == 7.5
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if given:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    programs = [file.name for file in folder.rglob("*") if "lambda" in file.name]
    assert len({name.rsplit("-", 1)[0] for name in programs}) == kept + (given is not None)
