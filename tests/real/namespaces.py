"""Bad networks: two network namespaces with a bad link between them; DNS that is slow or does not answer."""

import contextlib
import itertools
import os
import random
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from harness import PATIENCE, TARGET, Child, binary, clean_environment, contains, equal, run, wait_until
from wire import Wire
from world import REGION, seeing

# Maximum time until a half-open connection is replaced: a ping's interval, its timeout, and a new WebSocket.
NOTICED = 60
BULK = 400_000


def checks(suite, world):
    """If namespaces cannot be created, each check is skipped by its name."""
    slow_dns = [
        ("DNS that answers slowly", slow_names, world),
        ("DNS that does not answer is named within seconds", dead_names, world),
    ]
    paths = [
        ("a long path that loses and reorders: every byte arrives", bulk, {"delay": 0.04, "jitter": 0.02, "loss": 0.01}),
        ("a tiny MTU: every byte arrives", small_packets),
        ("IPv6 only", ipv6_only),
        ("a NAT that forgets: the connection goes on", forgetting_nat),
        ("an address that changes: the connection goes on", new_address),
        ("credentials of a container never go through a proxy", container),
    ]
    cause = unavailable()
    with ThreadPoolExecutor(len(slow_dns) + len(paths)) as pool:
        if cause:
            for what, *_ in paths:
                print(f"skip  {suite.name}: {what}: {cause}", flush=True)
            assert os.environ.get("CI") != "true", cause
            paths = []
        list(pool.map(lambda each: suite.check(*each), [*slow_dns, *paths]))


def unavailable():
    """Returns the reason why namespaces cannot be created, if any."""
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    name = f"probe-{os.getpid()}"
    made = run(["ip", "netns", "add", name], env=clean_environment())
    if made.code:
        return f"network namespaces can't be made: {made.stderr}"
    run(["ip", "netns", "del", name], env=clean_environment()).ok()
    return None


class Link:
    """The client's namespace and the remote namespace, which contains the local Session Manager and a service."""

    count = itertools.count()

    def __init__(self, version=4, mtu=1500, **quality):
        number = next(self.count)
        self.near, self.far = (f"tests-{os.getpid()}-{number}-{side}" for side in ("near", "far"))
        self.version = version
        self.ours, self.theirs = ("10.99.0.1", "10.99.0.2") if version == 4 else ("fd99::1", "fd99::2")
        self.devices = [f"t{os.getpid() % 100_000}n{number}{side}" for side in "nf"]
        self.mtu, self.quality = mtu, quality
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        for name in (self.near, self.far):
            system("ip", "netns", "add", name)
            self.stack.callback(subprocess.run, ["ip", "netns", "del", name])
        self.wire = Wire(self.devices, **self.quality)
        self.stack.callback(self.wire.close)
        for name, device, address in zip((self.near, self.far), self.devices, (self.ours, self.theirs)):
            system("ip", "link", "set", device, "netns", name)
            self.sh(name, f"ip link set lo up; ip link set {device} mtu {self.mtu} up")
            self.address("add", address, name)
        host = self.theirs if self.version == 4 else f"[{self.theirs}]"
        manager = ["local", "--insecure-credentials", "any", "--listen", f"{host}:8080"]
        self.manager = self.stack.enter_context(self.child(self.far, [binary(), *manager]))
        service = self.stack.enter_context(self.child(self.far, ["python3", "-u", "-c", UPPER]))
        equal(service.line(), "ready")
        wait_until("the local Session Manager", lambda: "Ctrl-C" in self.manager.stderr)
        keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_REGION": REGION}
        self.variables = {**keys, "AWS_ENDPOINT_URL": f"http://{host}:8080"}
        return self

    def __exit__(self, *_):
        self.stack.close()

    def address(self, verb, address, name):
        bits = "24" if self.version == 4 else "64 nodad"
        device = self.devices[0 if name == self.near else 1]
        self.sh(name, f"ip addr {verb} {address}/{bits} dev {device}")

    def sh(self, name, command):
        system("ip", "netns", "exec", name, "sh", "-c", command)

    def child(self, name, command, variables=None):
        return Child(["ip", "netns", "exec", name, *command], env=clean_environment(variables))

    @contextlib.contextmanager
    def tunnel(self):
        """Starts a forward with a Unix socket, which can be reached from this namespace."""
        with tempfile.TemporaryDirectory(prefix="tests-namespaces-") as folder:
            path = f"{folder}/tunnel.sock"
            spec = f"unix:{path}:127.0.0.1:7000"
            arguments = ["forward", "-t", TARGET, "-L", spec, "--sessions", "1", "--allow-stream-host", self.theirs, "-v"]
            with self.child(self.near, [binary(), *arguments], self.variables) as tool:
                contains(tool.line(), "Forwarding")
                yield Tunnel(path, tool)
                tool.stop().ok()


# The service in the remote namespace answers in capitals.
UPPER = """
import socketserver
class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        while chunk := self.request.recv(1 << 16):
            self.request.sendall(chunk.upper())
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
server = Server(("127.0.0.1", 7000), Upper)
print("ready")
server.serve_forever()
"""


class Tunnel:
    def __init__(self, path, tool):
        self.path, self.tool = path, tool

    @contextlib.contextmanager
    def connection(self):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(NOTICED)
            stream.connect(self.path)
            yield stream


def exchange(stream, data):
    """Sends data and checks that it is returned in capitals."""
    sender = threading.Thread(target=stream.sendall, args=(data,), daemon=True)
    sender.start()
    got = b""
    while len(got) < len(data):
        chunk = stream.recv(1 << 16)
        assert chunk, f"the end after {len(got)} of {len(data)} bytes"
        got += chunk
    assert got == data.upper(), "the bytes differ"
    sender.join()


def system(*command):
    run(command, env=clean_environment()).ok()


def letters(count):
    return random.Random(7).randbytes(count // 2).hex().encode()


def bulk(quality):
    with Link(**quality) as link, link.tunnel() as tunnel, tunnel.connection() as stream:
        exchange(stream, letters(BULK))


def small_packets():
    with Link(mtu=576) as link, link.tunnel() as tunnel, tunnel.connection() as stream:
        exchange(stream, letters(BULK))


def ipv6_only():
    with Link(version=6) as link, link.tunnel() as tunnel, tunnel.connection() as stream:
        exchange(stream, letters(BULK))


def forgetting_nat():
    """Packets of all existing connections are dropped, in both directions and without an error."""
    with Link() as link, link.tunnel() as tunnel, tunnel.connection() as stream:
        exchange(stream, b"before")
        link.wire.forget()
        exchange(stream, b"after it forgot")
        contains(tunnel.tool.stderr, "reconnect")


def new_address():
    with Link() as link, link.tunnel() as tunnel, tunnel.connection() as stream:
        exchange(stream, b"before")
        link.address("del", link.ours, link.near)
        link.address("add", "10.99.0.3", link.near)
        began = time.monotonic()
        exchange(stream, b"after the change")
        # Faster than with only the pings.
        assert time.monotonic() - began < 20, "the change was not detected"


def container():
    """The credentials' service has a link-local address, which is reached without the proxy; the proxy does not answer."""
    with Link() as link:
        link.sh(link.near, "ip addr add 169.254.170.2/32 dev lo")
        with link.child(link.near, ["python3", "-u", "-c", CREDENTIALS]) as server:
            equal(server.line(), "ready")
            proxies = {name: "http://127.0.0.1:1" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
            variables = {**link.variables, **proxies, "NO_PROXY": link.theirs}
            variables |= {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/creds", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
            command = [binary(), "exec", "--allow-stream-host", link.theirs, TARGET, "--", "echo", "done here"]
            equal(link.child(link.near, command, variables).finish().ok(), "done here")
            equal(server.line(), "asked")


CREDENTIALS = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"AccessKeyId":"any","SecretAccessKey":"any","Token":"t","Expiration":"2999-01-01T00:00:00Z"}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        print("asked")
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("169.254.170.2", 80), Handler)
print("ready")
server.serve_forever()
"""


class Names:
    """A DNS server that answers late, or never."""

    def __init__(self, world, address, delay):
        self.delay = delay
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 53))
        self.file = world.folder / f"resolv-{address}"
        self.file.write_text(f"nameserver {address}\n")
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                question, asker = self.socket.recvfrom(4096)
                if self.delay is not None:
                    threading.Timer(self.delay, self.socket.sendto, [self._answer(question), asker]).start()

    @staticmethod
    def _answer(question):
        """Answers 127.0.77.1 for each name, and no address for IPv6."""
        end = question.index(b"\0", 12) + 5
        is_a = question[end - 4 : end - 2] == b"\0\1"
        counts = bytes([0, 1, 0, int(is_a), 0, 0, 0, 0])
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([127, 0, 77, 1]) if is_a else b""
        return question[:2] + b"\x81\x80" + counts + question[12:end] + record

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def with_names(world, names):
    command = [*seeing(names.file, "/etc/resolv.conf"), binary(), "exec", TARGET, "--", "echo", "done here"]
    return run(command, env=clean_environment(world.variables))


def slow_names(world):
    with Names(world, "127.0.77.2", delay=2) as names:
        equal(with_names(world, names).ok(), "done here")


def dead_names(world):
    with Names(world, "127.0.77.3", delay=None) as names:
        began = time.monotonic()
        ended = with_names(world, names)
        took = time.monotonic() - began
    contains(ended.stderr, f"https://ssm.{REGION}.amazonaws.com", "could not be looked up within 6.0 s", "DNS does not answer")
    equal(ended.code, 5)
    assert took < PATIENCE / 2, f"it took {took:.1f} s"
