"""Findings from reports by a language model behind an OpenAI-compatible endpoint: optional.

REPORT TEXT LEAVES THIS MACHINE for the address the user names. Nothing here runs unless a `Structurer` is
made.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from medclip_jax.reports.findings import CT_RATE_FINDINGS, UNCERTAIN_MEANINGS, extract
from medclip_jax.reports.sections import clean
from medclip_jax.reports.vocabulary import FINDINGS

_LOG = logging.getLogger(__name__)
_ANSWERS = {"present": 1, "absent": -1, "not_mentioned": 0}
_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT = 60.0


class StructurerError(RuntimeError):
    """The endpoint cannot be used, or did not give a valid answer; the message says what to do."""


class _InvalidAnswerError(ValueError):
    """The endpoint answered, but not with the statuses that were asked for."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key and the report to an address that the user did not name."""

    def redirect_request(self, *arguments: object) -> None:
        return None


class Structurer:
    """Reads findings off reports by asking a chat model, one report a call.

    Attributes:
        asked: calls made so far, retries included.
        cached: reports answered from the cache.
        fallen_back: reports answered by the rules because the endpoint failed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str | None = None,
        cache: str | Path | None = None,
        findings: Iterable[str] = CT_RATE_FINDINGS,
        uncertain: str = "present",
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 1.0,
        on_failure: Literal["raise", "rules"] = "raise",
    ):
        """Set up; calls nothing yet.

        Args:
            url: base address, e.g. "http://localhost:8000/v1"; "/chat/completions" is added where missing.
            model: name of the model at that endpoint.
            key_variable: name of the environment variable with the API key; None sends none.
            cache: folder for answers, one small JSON each, named by a hash of text, model and question. Holds
                no report text.
            findings: names from `FINDINGS` to ask for.
            uncertain: what "uncertain" counts as; see `extract`.
            timeout: seconds for one call.
            retries: further tries after a failed call or an invalid answer.
            backoff: seconds before the first further try, doubled each time up to a minute; a Retry-After of
                the endpoint counts where it is longer.
            on_failure: "raise", or "rules" to answer by `extract` (counted and logged).

        Raises:
            StructurerError: the key's variable is not set.
            ValueError: an address without http or https, an unknown finding or option.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the endpoint {url!r} must start with http:// or https://")
        if uncertain not in UNCERTAIN_MEANINGS:
            raise ValueError(f"uncertain must be one of {', '.join(UNCERTAIN_MEANINGS)}, not {uncertain!r}")
        if on_failure not in ("raise", "rules"):
            raise ValueError(f"on_failure must be 'raise' or 'rules', not {on_failure!r}")
        self._findings = tuple(findings)
        unknown = [name for name in self._findings if name not in FINDINGS]
        if unknown:
            raise ValueError(f"unknown findings {', '.join(unknown)}; known: {', '.join(sorted(FINDINGS))}")
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key_variable is not None:
            key = os.environ.get(key_variable, "").strip()
            if not key:
                raise StructurerError(
                    f"the environment variable {key_variable} is not set: put the API key of {url} there, or "
                    f"leave key_variable out for an endpoint without keys"
                )
            self._headers["Authorization"] = f"Bearer {key}"
        base = url.rstrip("/")
        self._url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self._model = model
        self._cache = Path(cache).expanduser() if cache is not None else None
        self._uncertain = uncertain
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._on_failure = on_failure
        self._question = _question(self._findings)
        # Proxies of the environment stay in force, as for any other call of the user's.
        self._opener = urllib.request.build_opener(_NoRedirect)
        self.asked = self.cached = self.fallen_back = 0

    def __call__(self, text: str) -> dict[str, int]:
        """Read the findings off a report.

        Args:
            text: the report; an empty one is answered here, without a call.

        Returns:
            Name to 1 present, -1 absent, 0 not mentioned.

        Raises:
            StructurerError: no valid answer after all tries, and `on_failure` is "raise".
        """
        report = clean(text)
        if not report:
            return dict.fromkeys(self._findings, 0)
        answers = self._read_cache(report)
        if answers is None:
            try:
                answers = self._ask(report)
            except StructurerError as error:
                if self._on_failure == "raise":
                    raise
                self.fallen_back += 1
                _LOG.warning("answered by rules instead: %s", error)
                return extract(report, self._findings, uncertain=self._uncertain)
            self._write_cache(report, answers)
        else:
            self.cached += 1
        meanings = {**_ANSWERS, "uncertain": UNCERTAIN_MEANINGS[self._uncertain]}
        return {name: meanings[answers[name]] for name in self._findings}

    def _ask(self, report: str) -> dict[str, str]:
        body = {
            "model": self._model,
            "temperature": 0,
            "response_format": {"type": "json_object"},
            "messages": [
                {"role": "system", "content": self._question},
                {"role": "user", "content": report},
            ],
        }
        payload = json.dumps(body).encode()
        reason = ""
        wait = self._backoff
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(min(wait, _LONGEST_WAIT))
                wait = self._backoff * 2**attempt
            self.asked += 1
            try:
                return _validate(self._post(payload), self._findings)
            except urllib.error.HTTPError as error:
                # The body is not quoted: an endpoint may repeat the report in it.
                reason = f"HTTP {error.code}"
                if error.code not in _TRY_AGAIN:
                    raise StructurerError(_advice(error.code, self._url, self._model)) from None
                wait = max(wait, _seconds(error.headers.get("Retry-After")))
            except _InvalidAnswerError as error:
                reason = str(error)
            except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, unknown host
                reason = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
        raise StructurerError(
            f"no valid answer from {self._url} after {self._retries + 1} tries (last: {reason}); check that "
            f"the endpoint runs and that {self._model!r} can answer in JSON, raise timeout or retries, or "
            f'use on_failure="rules"'
        )

    def _post(self, payload: bytes) -> bytes:
        request = urllib.request.Request(self._url, data=payload, headers=self._headers, method="POST")
        with self._opener.open(request, timeout=self._timeout) as response:
            return response.read()

    def _cache_file(self, report: str) -> Path | None:
        if self._cache is None:
            return None
        parts = json.dumps([self._url, self._model, self._question, report])
        return self._cache / f"{hashlib.sha256(parts.encode()).hexdigest()}.json"

    def _read_cache(self, report: str) -> dict[str, str] | None:
        file = self._cache_file(report)
        if file is None or not file.exists():
            return None
        try:
            return _check(json.loads(file.read_text(encoding="utf-8")), self._findings)
        except (OSError, ValueError):
            return None  # damaged by a full disk or by hand: asked again and written anew

    def _write_cache(self, report: str, answers: dict[str, str]) -> None:
        file = self._cache_file(report)
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and moved, so that a kill never leaves half an answer.
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as aside:
            json.dump(answers, aside)
        os.replace(aside.name, file)


def _question(findings: tuple[str, ...]) -> str:
    listed = "\n".join(f"- {name}: {FINDINGS[name].phrase}" for name in findings)
    return (
        "You label radiology reports. For every finding below say what the report states about it now: "
        '"present", "absent" (denied, or described as normal), "uncertain" (only suspected) or '
        '"not_mentioned". What is only history counts as not_mentioned. Answer with one JSON object whose '
        f"keys are exactly these names and whose values are those words, and nothing else.\n{listed}"
    )


def _validate(raw: bytes, findings: tuple[str, ...]) -> dict[str, str]:
    try:
        content = json.loads(raw)["choices"][0]["message"]["content"]
        text = content.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
        answers = json.loads(text)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _InvalidAnswerError("the answer is not the JSON object that was asked for") from None
    return _check(answers, findings)


def _check(answers: object, findings: tuple[str, ...]) -> dict[str, str]:
    if not isinstance(answers, dict):
        raise _InvalidAnswerError("the answer is not a JSON object")
    missing = [name for name in findings if name not in answers]
    if missing:
        raise _InvalidAnswerError(f"the answer lacks {', '.join(missing)}")
    allowed = {*_ANSWERS, "uncertain"}
    wrong = [name for name in findings if not isinstance(answers[name], str) or answers[name] not in allowed]
    if wrong:
        raise _InvalidAnswerError(
            f"the answer for {', '.join(wrong)} is none of {', '.join(sorted(allowed))}"
        )
    return {name: answers[name] for name in findings}


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0  # a date: the backoff alone decides


def _advice(code: int, url: str, model: str) -> str:
    if code in (401, 403):
        return f"{url} refused the key (HTTP {code}): check the variable named by key_variable"
    if code == 404:
        return f"{url} does not exist or does not know {model!r} (HTTP 404): check address and model"
    if 300 <= code < 400:
        return f"{url} redirects (HTTP {code}), which is not followed: give the final address"
    return f"{url} rejected the request (HTTP {code}): check that it is an OpenAI-compatible chat endpoint"
