"""Compiled programs kept on disk, so that the next process of the same model starts without compiling."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

LARGEST_BYTES = 4 * 1024**3
"""What the cache may hold; JAX removes what was not used for longest."""

SHORTEST_SECONDS = 0.02
"""Programs that compile faster are not kept. Those that draw weights take about 0.07 s, and are dozens."""


def default_folder() -> Path:
    """Where compiled programs are kept: `medclip-jax/xla` in the user's cache folder.

    The cache folder is ``$XDG_CACHE_HOME``, else ``~/.cache``. Below it every kind of processor has a folder
    of its own: programs compiled for one may not run on another that shares the home folder.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return cache / "medclip-jax" / "xla" / _processor()


def use_compilation_cache() -> Path | None:
    """Let JAX keep compiled programs on disk, if nobody decided otherwise.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder, ``JAX_ENABLE_COMPILATION_CACHE=0`` keeps none; so do
    the entries of `jax.config` of these names. A folder that cannot be written is done without. Several CPU
    devices keep none either, whoever asks for it (see `loses_order_of_collectives`).

    Returns:
        The folder, None where there is none.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if loses_order_of_collectives():
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    try:
        folder = default_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            return None
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if jax.config.jax_compilation_cache_max_size == -1:
        jax.config.update("jax_compilation_cache_max_size", LARGEST_BYTES)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_SECONDS)
    # Whoever compiled before, without a cache, made JAX settle on none.
    compilation_cache.reset_cache()
    return folder


def loses_order_of_collectives() -> bool:
    """Whether programs read from disk may hang here: they do on several CPU devices.

    As compiled, devices take independent collectives in one order. What XLA reads back for CPUs no longer
    says so: one device waits for its partners in the first collective, another in the second, and after 40 s
    XLA ends the process (seen with JAX 0.10 within seconds in 4 of 4 processes that loaded one program, in
    none of 6 that compiled it, in 12,000 steps).
    """
    import jax

    return jax.default_backend() == "cpu" and jax.device_count() > 1


def _processor() -> str:
    """A short name for the instructions that this processor has."""
    features = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                features += line.partition(":")[2]
                break
    except OSError:
        pass
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
