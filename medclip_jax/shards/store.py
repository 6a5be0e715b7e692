"""Object stores by URL (``s3://bucket/set``, ``gs://``, any other of fsspec): files moved, errors made plain.

Credentials come from where each store's library looks for them (environment, profile, role of the machine).
They are never read here, a URL that holds some is refused, and the libraries' own texts are not repeated,
because they may quote a request.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from medclip_jax.shards.arrays import ShardError

T = TypeVar("T")

ATTEMPTS = 5
"""How often something is tried that may work the next time."""

FIRST_WAIT_SECONDS = 0.5
"""Before the second attempt; each further wait is twice as long, and a little random."""

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Scheme of a URL to the extra of this package that brings its library."""

_CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role "
    "(AWS_ENDPOINT_URL names a store that is not Amazon's)",
    "gcs": "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, or give the "
    "machine a service account",
}

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
"""Errors that another attempt would repeat."""


@dataclass(frozen=True)
class Store:
    """A folder in an object store.

    Attributes:
        url: of the folder, without a slash at its end.
        files: fsspec's file system.
        root: what the file system calls the folder.
    """

    url: str
    files: Any
    root: str

    def read(self, name: str) -> bytes:
        """A small file.

        Raises:
            FileNotFoundError: there is none.
            ShardError: it cannot be read; the message says what to do.
        """
        return self._try("read", lambda: self.files.cat_file(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a small file; readers see all of it or none."""
        self._try("written", lambda: self.files.pipe_file(self._path(name), data))

    def get(self, name: str, to: Path) -> None:
        """Copy a file to this machine.

        Raises:
            FileNotFoundError: there is none.
            ShardError: it cannot be read.
        """
        self._try("read", lambda: self.files.get_file(self._path(name), str(to)))

    def put(self, file: Path, name: str) -> None:
        """Copy a file of this machine into the store, and see that it is there as long as it is here."""

        def copy() -> None:
            path = self._path(name)
            if self._has_folders:
                self.files.makedirs(self.files._parent(path), exist_ok=True)
            self.files.put_file(str(file), path)
            if self._size(path) != file.stat().st_size:
                raise OSError("it is not as long as it should be")

        self._try("written", copy)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        return self._try("read", lambda: self._size(self._path(name)))

    def names(self) -> list[str]:
        """Names of all files below the folder, [] where it does not exist."""

        def find() -> list[str]:
            self.files.invalidate_cache()
            try:
                return sorted(path[len(self.root) :].lstrip("/") for path in self.files.find(self.root))
            except FileNotFoundError as error:
                if _bucket_is_missing(error):
                    raise
                return []

        return self._try("read", find)

    def remove(self, name: str) -> None:
        """Remove a file; none is as well."""
        with contextlib.suppress(FileNotFoundError):
            self._try("written", lambda: self.files.rm_file(self._path(name)))

    def make(self) -> None:
        """Make the folder where the store has folders; a bucket must be there already."""
        if self._has_folders:
            self._try("written", lambda: self.files.makedirs(self.root, exist_ok=True))

    @property
    def _has_folders(self) -> bool:
        """Whether a folder must be made before a file can lie in it; buckets have none."""
        return "file" in self.files.protocol

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _size(self, path: str) -> int | None:
        self.files.invalidate_cache()
        try:
            return int(self.files.info(path)["size"])
        except FileNotFoundError:
            return None

    def _try(self, done: str, action: Callable[[], T]) -> T:
        """Do something, again after a while where it may work then.

        Raises:
            FileNotFoundError: there is no such file.
            ShardError: it failed for another reason.
        """
        for wait in _waits():
            try:
                return action()
            except Exception as error:
                if _bucket_is_missing(error):
                    raise self._explain(done, error) from None
                if isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(f"no such file in '{self.url}'") from None
                if wait is None or isinstance(error, _FINAL) or _is_about_credentials(error):
                    raise self._explain(done, error) from None
                time.sleep(wait)
        raise AssertionError("the last wait is None")

    def _explain(self, done: str, error: BaseException) -> ShardError:
        scheme = self.url.partition("://")[0]
        how = _CREDENTIALS.get(EXTRAS.get(scheme, ""), "see what the store's fsspec library asks for")
        begin = f"'{self.url}' cannot be {done}"
        if _is_about_credentials(error):
            return ShardError(f"{begin}: no credentials, or none that are valid: {how}")
        if isinstance(error, PermissionError):
            return ShardError(
                f"{begin}: access denied (403). Either these credentials may not do that in this bucket, or "
                f"they are not the ones you mean: {how}"
            )
        if _bucket_is_missing(error):
            bucket = self.root.partition("/")[0]
            return ShardError(f"{begin}: there is no bucket '{bucket}'. Make it first, or correct the URL")
        return ShardError(
            f"{begin} after {ATTEMPTS} attempts ({_kinds(error)}): see whether the network and the store "
            "answer, and run the same command again; what is complete is kept"
        )


def open_store(url: str) -> Store:
    """A folder in an object store; nothing is read yet.

    Args:
        url: such as ``s3://bucket/folder``.

    Raises:
        ShardError: the scheme is unknown, its library is not installed, or the URL holds credentials.
    """
    import fsspec

    url = url.rstrip("/")
    scheme, _, rest = url.partition("://")
    if "@" in rest.partition("/")[0] or "?" in rest:
        raise ShardError(
            f"the {scheme}:// URL holds a user name, password or query, which would be written into configs "
            "and logs: leave them out, and give credentials as the store's library expects them"
        )
    extra = EXTRAS.get(scheme)
    try:
        # Listings are not kept: another machine may write there at this moment.
        options = {"use_listings_cache": False} if extra else {}
        files, root = fsspec.core.url_to_fs(url, **options)
    except ImportError:
        fix = f"pip install 'medclip-jax[{extra}]'" if extra else f"install fsspec's library for {scheme}"
        raise ShardError(f"'{url}' needs a library that is not installed: {fix}") from None
    except ValueError:
        raise ShardError(
            f"'{url}': nothing knows {scheme}://. Known are s3://, gs://, file:// and the others of fsspec"
        ) from None
    root = root.rstrip("/")
    if not root or (extra and "/" not in root):
        raise ShardError(f"'{url}' names no folder: write {scheme}://BUCKET/FOLDER")
    return Store(url, files, root)


def _waits() -> Iterator[float | None]:
    """Seconds to wait after each failed attempt; None after the last."""
    for attempt in range(ATTEMPTS - 1):
        yield FIRST_WAIT_SECONDS * 2**attempt * random.uniform(0.75, 1.25)
    yield None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _kinds(error: BaseException) -> str:
    return ", ".join(dict.fromkeys(type(one).__name__ for one in _chain(error)))


def _code(error: BaseException) -> str:
    """What the store calls the error; only botocore keeps it."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _is_about_credentials(error: BaseException) -> bool:
    names = {type(one).__name__ for one in _chain(error)}
    wanting = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound"}
    codes = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
    return bool(names & wanting) or _code(error) in codes


def _bucket_is_missing(error: BaseException) -> bool:
    return _code(error) == "NoSuchBucket"
