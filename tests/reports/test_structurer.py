"""The structurer against a small server on loopback that answers as told."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from medclip_jax.reports.structurer import Structurer, StructurerError

NAMES = ("cardiomegaly", "emphysema", "consolidation")
GOOD = {"cardiomegaly": "present", "emphysema": "absent", "consolidation": "uncertain"}


def chat(content) -> tuple[int, str]:
    text = content if isinstance(content, str) else json.dumps(content)
    return 200, json.dumps({"choices": [{"message": {"content": text}}]})


@pytest.fixture
def endpoint(monkeypatch):
    """A server with `.replies`, (code, body) given out in turn (the last one again), and `.requests`."""
    monkeypatch.setenv("no_proxy", "*")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
            replies = self.server.replies
            code, text = replies.pop(0) if len(replies) > 1 else replies[0]
            self.server.release.wait(5)
            self.send_response(code)
            if code == 302:
                self.send_header("Location", "/elsewhere")
            with contextlib.suppress(BrokenPipeError):  # a client that has given up waiting
                self.end_headers()
                self.wfile.write(text.encode())

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.replies, server.requests, server.release = [chat(GOOD)], [], threading.Event()
    server.release.set()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def make(endpoint, **options) -> Structurer:
    return Structurer(endpoint.url, "tiny", findings=NAMES, **{"backoff": 0.001, **options})


def test_asks_and_validates(endpoint, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret-1")
    structurer = make(endpoint, key_variable="SOME_KEY")
    assert structurer("The heart is large.") == {"cardiomegaly": 1, "emphysema": -1, "consolidation": 1}
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret-1"
    assert body["model"] == "tiny"
    assert body["temperature"] == 0
    assert body["messages"][1]["content"] == "The heart is large."
    assert all(name in body["messages"][0]["content"] for name in NAMES)


def test_no_key_is_sent_unless_named(endpoint):
    make(endpoint)("x y")
    assert "Authorization" not in endpoint.requests[0][1]


def test_uncertain_counts_as_asked(endpoint):
    assert make(endpoint, uncertain="unknown")("x y")["consolidation"] == 0
    assert make(endpoint, uncertain="absent")("x y")["consolidation"] == -1


def test_empty_report_is_not_sent(endpoint):
    assert make(endpoint)("Not given.") == dict.fromkeys(NAMES, 0)
    assert endpoint.requests == []


@pytest.mark.parametrize(
    "bad",
    [
        (500, "the report was: secret words"),
        (429, ""),
        (200, "not json"),
        (200, json.dumps({"choices": []})),
        chat("no json at all"),
        chat({"cardiomegaly": "present"}),
        chat({**GOOD, "emphysema": "perhaps"}),
        chat({**GOOD, "emphysema": ["absent"]}),
        chat([1, 2]),
        (200, json.dumps({"choices": [{"message": {"content": None}}]})),
    ],
)
def test_tries_again_then_says_what_to_do(endpoint, bad):
    endpoint.replies = [bad, chat(GOOD)]
    structurer = make(endpoint)
    assert structurer("x y")["cardiomegaly"] == 1
    assert structurer.asked == 2
    endpoint.replies = [bad]
    with pytest.raises(StructurerError, match="after 3 tries") as caught:
        make(endpoint, retries=2)("x y")
    assert "secret words" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "advice"), [(401, "key"), (404, "address and model"), (302, "final address"), (400, "OpenAI")]
)
def test_refusals_are_not_repeated(endpoint, code, advice):
    endpoint.replies = [(code, "")]
    structurer = make(endpoint)
    with pytest.raises(StructurerError, match=advice):
        structurer("x y")
    assert len(endpoint.requests) == 1


def test_code_fences_are_taken_off(endpoint):
    endpoint.replies = [chat(f"```json\n{json.dumps(GOOD)}\n```")]
    assert make(endpoint)("x y")["emphysema"] == -1


def test_times_out(endpoint):
    endpoint.release.clear()
    with pytest.raises(StructurerError, match=r"(?i)timed? ?out"):
        make(endpoint, timeout=0.05, retries=0)("x y")


def test_no_endpoint(endpoint):
    with pytest.raises(StructurerError, match="check that the endpoint runs"):
        Structurer("http://127.0.0.1:9/v1", "tiny", findings=NAMES, retries=0)("x y")


def test_falls_back_to_rules_when_told(endpoint):
    endpoint.replies = [(500, "")]
    structurer = make(endpoint, retries=0, on_failure="rules")
    assert structurer("No emphysema. Consolidation is seen.") == {
        "cardiomegaly": 0,
        "emphysema": -1,
        "consolidation": 1,
    }
    assert structurer.fallen_back == 1


def test_cache_answers_without_a_call_and_holds_no_text(endpoint, tmp_path):
    make(endpoint, cache=tmp_path)("The heart is large.")
    again = make(endpoint, cache=tmp_path, uncertain="absent")
    assert again("The heart is large.") == {"cardiomegaly": 1, "emphysema": -1, "consolidation": -1}
    assert (again.cached, len(endpoint.requests)) == (1, 1)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == GOOD
    make(endpoint, cache=tmp_path)("Another report.")
    Structurer(endpoint.url, "other", findings=NAMES, cache=tmp_path)("The heart is large.")
    assert len(endpoint.requests) == 3
    file.write_text('{"cardio')
    make(endpoint, cache=tmp_path)("The heart is large.")
    assert len(endpoint.requests) == 4
    assert json.loads(file.read_text()) == GOOD


def test_failed_answers_are_not_cached(endpoint, tmp_path):
    endpoint.replies = [chat("nothing")]
    make(endpoint, cache=tmp_path, retries=0, on_failure="rules")("x y")
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings_say_what_to_do(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(StructurerError, match="NO_SUCH_KEY is not set"):
        Structurer("http://localhost/v1", "m", key_variable="NO_SUCH_KEY")
    with pytest.raises(ValueError, match="http://"):
        Structurer("localhost:8000", "m")
    with pytest.raises(ValueError, match="unknown findings x"):
        Structurer("http://localhost/v1", "m", findings=["x"])
    with pytest.raises(ValueError, match="uncertain must be"):
        Structurer("http://localhost/v1", "m", uncertain="maybe")
    with pytest.raises(ValueError, match="on_failure"):
        Structurer("http://localhost/v1", "m", on_failure="ignore")
