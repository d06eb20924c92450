"""`mirror node-config verify`: a node's pull, and whether the mirror saw it."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from mirror.cli import main
from mirror.nodes.cri import Cri, CriError, parse_endpoint
from mirror.nodes.errors import Unusable
from mirror.nodes.verify import CannotTell, Limits, default_admin, parse_image, verify
from tests.e2e.processes import eventually
from tests.nodes.conftest import Node
from tests.nodes.test_node_config import HOSTS, Holding

IMAGE = "docker.io/library/busybox:1.37"
PULL = b"\x0a\x20\x0a\x1e" + IMAGE.encode()  # field 1, 32 bytes, of it field 1, 30 bytes
QUICK = Limits(quiet=0.01, counted=0.2, tries=3)


class FakeRuntime:
    """A CRI server on `socket` that notes what it is asked, and does `pulled` with each pull."""

    def __init__(self, socket: Path) -> None:
        self.endpoint = f"unix://{socket}"
        self.asked: list[tuple[str, bytes]] = []
        self.pulled: Callable[[], None] = lambda: None
        self.refuses = False
        self.held = False
        self._pool = ThreadPoolExecutor(4)
        self._server = grpc.server(self._pool)
        self._server.add_generic_rpc_handlers((_Methods(self),))
        self._server.add_insecure_port(self.endpoint)
        self._server.start()

    def answer(self, method: str, request: bytes, context: Any) -> bytes:
        self.asked.append((method, request))
        match method:
            case "/runtime.v1.RuntimeService/Version":
                return b"\x0a\x050.1.0\x12\x04fake\x1a\x041.2.\x22\x02v1"
            case "/runtime.v1.ImageService/ImageStatus":
                # An image with its id and its size, a number that is passed over.
                return b"\x0a\x08\x0a\x03abc\x20\x80\x01" if self.held else b""
            case "/runtime.v1.ImageService/PullImage":
                if self.refuses:
                    context.abort(grpc.StatusCode.NOT_FOUND, "no such image")
                self.pulled()
                return b"\x0a\x03abc"
            case "/runtime.v1.ImageService/RemoveImage":
                return b""
        raise NotImplementedError(method)

    @property
    def methods(self) -> list[str]:
        return [method.rpartition("/")[2] for method, _ in self.asked]

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """Every method as bytes in, bytes out."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._runtime.answer(details.method, request, context)
        )


class FakeMirror:
    """An admin port: `counted` by the labels that a mirror gives."""

    def __init__(self) -> None:
        self.counted: dict[tuple[str, str, str, str], int] = {}
        self.looked: Callable[[], None] = lambda: None
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.looked()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(mirror.text().encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def text(self) -> str:
        lines = ["# TYPE mirror_requests_total counter"]
        for (upstream, kind, result, status), count in self.counted.items():
            labels = f'upstream="{upstream}",kind="{kind}",result="{result}",status="{status}"'
            lines.append(f"mirror_requests_total{{{labels}}} {count}")
        return "\n".join(lines) + "\n"

    def count(self, upstream: str = "docker.io", result: str = "hit", status: str = "200") -> None:
        """One more answer."""
        key = upstream, "manifest", result, status
        self.counted[key] = self.counted.get(key, 0) + 1

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[FakeRuntime]:
    made = FakeRuntime(tmp_path / "cri.sock")
    yield made
    made.stop()


@pytest.fixture
def counting() -> Iterator[FakeMirror]:
    made = FakeMirror()
    yield made
    made.stop()


@pytest.fixture
def hold(node: Node, runtime: FakeRuntime, counting: FakeMirror, tmp_path: Path) -> Iterator[Callable[[], Holding]]:
    """Starts what applies, and then pulls."""
    node.put(HOSTS, '[host."https://other.test"]\n')
    options = ["--verify-image", IMAGE, "--cri", runtime.endpoint, "--admin", counting.url]
    with ExitStack() as ends:

        def start() -> Holding:
            made = Holding(node, tmp_path / "log", *options)
            ends.callback(made.process.wait)
            ends.callback(made.process.kill)
            return made

        yield start


@pytest.fixture
def cri(runtime: FakeRuntime) -> Iterator[Cri]:
    with Cri(runtime.endpoint) as made:
        yield made


def test_pull_that_the_mirror_answers_is_seen(cri: Cri, runtime: FakeRuntime, counting: FakeMirror) -> None:
    """What the mirror counts of the image's registry during a pull is told, and of which runtime."""
    runtime.pulled = counting.count

    verdict = verify(IMAGE, counting.url, cri, limits=QUICK)

    assert (verdict.seen, verdict.answers, verdict.runtime) == (True, 1, "fake 1.2.")
    assert runtime.asked[-1] == ("/runtime.v1.ImageService/PullImage", PULL)


def test_pull_around_the_mirror_is_not_seen(cri: Cri, counting: FakeMirror) -> None:
    """A pull that succeeds while the mirror counts nothing went to the registry."""
    counting.count()

    verdict = verify(IMAGE, counting.url, cri, limits=QUICK)

    assert not verdict.seen
    assert "not seen" in verdict.text


@pytest.mark.parametrize(
    "answer",
    [
        {"upstream": "quay.io"},
        {"upstream": "none", "result": "refused", "status": "403"},
        {"result": "error", "status": "503"},
        {"result": "hit", "status": "404"},
    ],
    ids=["other-registry", "refused", "failed", "absent"],
)
def test_what_the_mirror_did_not_serve_is_not_seen(
    cri: Cri, runtime: FakeRuntime, counting: FakeMirror, answer: dict[str, str]
) -> None:
    """Another registry's pulls do not count, nor does a no of the mirror, after which the registry is asked."""
    runtime.pulled = lambda: counting.count(**answer)

    assert not verify(IMAGE, counting.url, cri, limits=QUICK).seen


def test_a_pattern_counts_for_its_registries(cri: Cri, runtime: FakeRuntime, counting: FakeMirror) -> None:
    """A registry that the mirror knows by a pattern is counted under the pattern."""
    runtime.pulled = lambda: counting.count("*.pkg.dev")

    assert verify("eu-docker.pkg.dev/project/app:1", counting.url, cri, limits=QUICK).seen


def test_others_are_waited_for(cri: Cri, runtime: FakeRuntime, counting: FakeMirror) -> None:
    """While others ask the mirror a rise proves nothing: it is tried again until there is quiet."""
    runtime.pulled = counting.count
    looks = iter([False, False, True])
    counting.looked = lambda: counting.count() if next(looks, False) else None

    verdict = verify(IMAGE, counting.url, cri, limits=QUICK)

    assert verdict.seen
    assert runtime.methods.count("PullImage") == 3  # the first, and two that were counted


def test_constant_others_leave_it_open(cri: Cri, runtime: FakeRuntime, counting: FakeMirror) -> None:
    """Where others never cease to ask, it is not claimed that the mirror saw this node."""
    counting.looked = counting.count

    with pytest.raises(CannotTell, match="others' pulls"):
        verify(IMAGE, counting.url, cri, limits=QUICK)


def test_a_mirror_that_started_anew_counts_from_nothing(cri: Cri, runtime: FakeRuntime, counting: FakeMirror) -> None:
    """Figures that have become smaller are those of a new process."""
    for _ in range(5):
        counting.count()

    def restart() -> None:
        if runtime.methods.count("PullImage") == 2:  # the one that is counted
            counting.counted.clear()
            counting.count()

    runtime.pulled = restart

    assert verify(IMAGE, counting.url, cri, limits=QUICK).seen


@pytest.mark.parametrize(("held", "removed"), [(False, 1), (True, 0)])
def test_clean_removes_only_what_was_brought(
    cri: Cri, runtime: FakeRuntime, counting: FakeMirror, held: bool, removed: int
) -> None:
    """An image that the node had before stays."""
    runtime.held, runtime.pulled = held, counting.count

    verify(IMAGE, counting.url, cri, clean=True, limits=QUICK)

    assert runtime.methods.count("RemoveImage") == removed


def test_nothing_is_removed_unasked(cri: Cri, runtime: FakeRuntime, counting: FakeMirror) -> None:
    """Without `clean` the image stays on the node."""
    runtime.pulled = counting.count

    verify(IMAGE, counting.url, cri, limits=QUICK)

    assert "RemoveImage" not in runtime.methods


def test_without_figures_nothing_is_pulled(cri: Cri, runtime: FakeRuntime, counting: FakeMirror) -> None:
    """A mirror that cannot be asked is told of before the node does anything."""
    counting.stop()

    with pytest.raises(CannotTell, match="/metrics cannot be read"):
        verify(IMAGE, counting.url, cri, limits=QUICK)

    assert runtime.asked == []


def test_refused_pull_is_told(cri: Cri, runtime: FakeRuntime, counting: FakeMirror) -> None:
    """What the runtime says of a pull that failed is passed on."""
    runtime.refuses = True

    with pytest.raises(CriError, match="PullImage: NOT_FOUND: no such image"):
        verify(IMAGE, counting.url, cri, limits=QUICK)


def test_absent_runtime_is_told(tmp_path: Path) -> None:
    """A socket that nobody listens on is named."""
    with Cri(f"unix://{tmp_path}/none.sock") as cri, pytest.raises(CriError, match=r"none\.sock: Version: UNAVAILABLE"):
        cri.version()


def test_closed_client_is_an_error(runtime: FakeRuntime) -> None:
    """Who asks after the end hears so."""
    cri = Cri(runtime.endpoint)
    cri.close()

    with pytest.raises(CriError):
        cri.version()


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where grpcio is not installed, what to install is said."""
    real = builtins.__import__

    def without_grpc(name: str, *rest: Any, **named: Any) -> Any:
        if name == "grpc":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_grpc)

    with pytest.raises(Unusable, match="pip install grpcio"):
        Cri("unix:///run/none.sock")


@pytest.mark.parametrize("seen", [True, False])
def test_command_says_it_and_exits_so(runtime: FakeRuntime, counting: FakeMirror, seen: bool) -> None:
    """Exit code 0 where the mirror saw the pull, 1 where it did not."""
    if seen:
        runtime.pulled = counting.count

    done = _command("--cri", runtime.endpoint, "--admin", counting.url)

    assert done.exit_code == (0 if seen else 1)
    assert done.output.startswith("seen: " if seen else "not seen: ")


@pytest.mark.parametrize(
    "options",
    [("--cri", "tcp://127.0.0.1:1"), ("--image", "busybox"), ("--admin", "localhost"), ("--mirror", "ftp://m")],
)
def test_bad_usage_exits_with_2(options: tuple[str, str]) -> None:
    """What makes no sense is told before anybody is asked."""
    done = _command(*options)

    assert done.exit_code == 2
    assert "expected" in done.output


def test_failure_exits_with_1(tmp_path: Path, counting: FakeMirror) -> None:
    """A runtime that does not answer is a failure, and named."""
    done = _command("--cri", f"unix://{tmp_path}/none.sock", "--admin", counting.url)

    assert done.exit_code == 1
    assert "none.sock" in done.output


@pytest.mark.parametrize("text", ["busybox", "library/busybox:1", "docker.io/", "docker.io/a b", "-.x/a"])
def test_image_wants_its_registry(text: str) -> None:
    """A short name is refused: whom it means is the runtime's affair."""
    with pytest.raises(ValueError, match="with its registry"):
        parse_image(text)


@pytest.mark.parametrize("text", ["localhost/a", "registry.corp:5000/a/b@sha256:00", "docker.io/library/a:1"])
def test_full_names_are_taken(text: str) -> None:
    """A registry is a name with a dot or a port, or localhost, as for runtimes."""
    assert parse_image(text) == text


def test_endpoint_is_a_socket() -> None:
    """With its scheme or without."""
    assert parse_endpoint("/run/cri.sock") == parse_endpoint("unix:///run/cri.sock") == "unix:///run/cri.sock"


@pytest.mark.parametrize(
    ("mirror", "admin"),
    [("https://mirror.corp", "http://mirror.corp:5001"), ("http://[::1]:5000", "http://[::1]:5001")],
)
def test_admin_port_is_beside_the_mirror(mirror: str, admin: str) -> None:
    """Port 5001 of the same host unless said otherwise."""
    assert default_admin(mirror) == admin


@pytest.mark.timeout(90)
def test_who_stays_tells_what_was_seen(runtime: FakeRuntime, counting: FakeMirror, hold: Callable[[], Holding]) -> None:
    """`apply --hold --verify-image` has it in its metrics and in its log, and ends as ever."""
    runtime.pulled = counting.count
    holding = hold()

    assert eventually(lambda: holding.ready() == 200, seconds=30)
    assert eventually(lambda: 'mirror_node_seen{runtime="containerd"} 1.0' in holding.metrics(), seconds=30)

    assert holding.stop() == 0
    assert "the mirror saw a pull" in holding.log()


@pytest.mark.timeout(90)
def test_a_pull_that_hangs_keeps_nobody_waiting(node: Node, runtime: FakeRuntime, hold: Callable[[], Holding]) -> None:
    """SIGTERM ends the pull, and the node's files are put back."""
    pulling, over = threading.Event(), threading.Event()

    def hang() -> None:
        pulling.set()
        over.wait(60)

    runtime.pulled = hang
    holding = hold()
    try:
        assert pulling.wait(30)
        assert 'mirror_node_seen{runtime="containerd"} 0.0' in holding.metrics()

        assert holding.stop() == 0
    finally:
        over.set()

    assert node.text(HOSTS) == '[host."https://other.test"]\n'


def test_verifying_wants_to_stay() -> None:
    """Without --hold nobody would be there to tell."""
    arguments = ["node-config", "apply", "--mirror", "http://127.0.0.1:5000", "--verify-image", IMAGE]

    done = CliRunner().invoke(main, arguments)

    assert done.exit_code == 2
    assert "--hold" in done.output


def _command(*options: str) -> Any:
    arguments = ["node-config", "verify", "--mirror", "http://127.0.0.1:5000", "--image", IMAGE]
    return CliRunner().invoke(main, [*arguments, *options])
