"""`socks`: one port for every destination, used by curl, psql, a Redis Cluster client and a browser."""

import contextlib
import os
import re
import shutil
import socket
import struct
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from account import POSTGRES
from database import free_port
from harness import SEARCH_PATH, TARGET, Child, Manager, Skipped, Tool, contains, equal, run, wait_until

NEEDS = ["curl", "proxychains4", "postgres", "psql", "redis-server", "redis-cli", "node"]

ASSETS = 120
# Names and an address that only the node can reach. A Redis Cluster reports these names for its nodes.
NODES = ["node1.internal", "node2.internal", "node3.internal"]
ADDRESS = "10.99.0.1"


def checks(suite):
    known = ["web.internal", "other.internal", "db.internal", "never.internal", ADDRESS, *NODES]
    with tempfile.TemporaryDirectory(prefix="tests-socks-") as name, Site() as site:
        with Manager(*[word for host in known for word in ("--host", f"{host}=127.0.0.1")]) as manager:
            lab = Lab(manager, site, Path(name))
            with lab.proxy("--pac", "internal") as proxy:
                suite.check("curl: SOCKS5 with remote names, SOCKS4a, CONNECT", curl, lab, proxy)
                suite.check("curl: SOCKS5 and SOCKS4 with addresses", addresses, lab, proxy)
                suite.check("refused, unknown and unsupported: the reply shows the reason", replies, lab, proxy)
                suite.check("proxy.pac names the domains, for this machine only", pac, proxy)
                suite.check("clients with another protocol, or that stop within a request, are disconnected", broken, lab, proxy)
                suite.check("psql through proxychains", psql, lab, proxy)
                suite.check("a Redis Cluster client connects to the cluster's other nodes", redis_cluster, lab, proxy)
                suite.check(f"a browser loads a private page of {ASSETS} assets", browser, lab, proxy)
            suite.check("connections to a destination share its sessions", shared, lab)
            suite.check("allow and deny lists", access, lab)
            suite.check("the limit of destinations: idle ones are removed, otherwise an error", limit, lab)
            suite.check("idle destinations lose their sessions, and get new ones", idle, lab)
            suite.check("the port is in use: exit code 3; other addresses than loopback: a warning", listening, lab)
            suite.check("SIGTERM ends the sessions", ends, lab)


class Lab:
    def __init__(self, manager, site, folder):
        self.manager, self.site, self.folder = manager, site, folder
        folder.chmod(0o755)

    def proxy(self, *arguments):
        return Proxy(self, *arguments)

    def active(self):
        import boto3

        variables = self.manager.variables
        ssm = boto3.client(
            "ssm", region_name=variables["AWS_REGION"], endpoint_url=variables["AWS_ENDPOINT_URL"],
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"], aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        )
        return len(ssm.describe_sessions(State="Active")["Sessions"])


class Proxy(Tool):
    def __init__(self, lab, *arguments):
        super().__init__("socks", TARGET, "-D", "0", *arguments, env=lab.manager.variables)
        self.address = re.search(r"127\.0\.0\.1:\d+", self.line())[0]
        self.port = int(self.address.rsplit(":")[-1])


class Site:
    """A private web site: a page with many assets, each of which reports that it was loaded."""

    def __enter__(self):
        page = "".join(f'<script src="/asset/{number}.js"></script>' for number in range(ASSETS))
        page = f"<!doctype html><title>private</title><script>loaded = 0</script>{page}<script>document.title = 'loaded ' + loaded</script>"

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                is_asset = self.path.startswith("/asset/")
                # The body is large enough that several connections are used at the same time.
                body = ("loaded++;" + " " * 20_000 if is_asset else page).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/javascript" if is_asset else "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # When a proxy is killed, its connections are reset.
        self.server.handle_error = lambda *_: None
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def fetch(lab, *way, host="web.internal", port=None, limit=60):
    arguments = ["curl", "--silent", "--show-error", "--max-time", "30", *way, f"http://{host}:{port or lab.site.port}/"]
    return run(arguments, limit, env={"PATH": SEARCH_PATH})


def curl(lab, proxy):
    for way in [
        ["--proxy", f"socks5h://{proxy.address}"],
        ["--proxy", f"socks4a://{proxy.address}"],
        ["--proxy", f"http://{proxy.address}", "--proxytunnel"],
    ]:
        contains(fetch(lab, *way).ok(), "<title>private</title>")


def addresses(lab, proxy):
    for way in ["socks5h", "socks4"]:
        contains(fetch(lab, "--proxy", f"{way}://{proxy.address}", host=ADDRESS).ok(), "<title>private</title>")


def socks5(proxy, host, port, command=1):
    """Returns the code of the reply."""
    with socket.create_connection(("127.0.0.1", proxy.port), 30) as stream:
        stream.sendall(b"\x05\x01\x00")
        equal(stream.recv(2), b"\x05\x00")
        stream.sendall(bytes([5, command, 0, 3, len(host)]) + host.encode() + struct.pack(">H", port))
        return stream.makefile("rb").read(10)[1]


def replies(lab, proxy):
    closed = free_port()
    equal(socks5(proxy, "web.internal", lab.site.port), 0)
    equal(socks5(proxy, "web.internal", closed), 5)
    # The agent does not report whether the name or the port was the cause.
    assert socks5(proxy, "no-such-host.invalid", 80) in (4, 5)
    equal(socks5(proxy, "web.internal", lab.site.port, command=2), 7)
    equal(socks5(proxy, "web.internal", lab.site.port, command=3), 7)
    for host, port, status in [("web.internal", closed, 502), ("no-such-host.invalid", 80, 502)]:
        ended = fetch(lab, "--proxy", f"http://{proxy.address}", "--proxytunnel", host=host, port=port)
        contains(ended.stderr, str(status))
    # For a plain HTTP request, the error names the alternative.
    contains(fetch(lab, "--proxy", f"http://{proxy.address}").ok(), "supports only CONNECT")
    # The connection succeeds when a server listens there and the failure is no longer remembered.
    with socket.create_server(("127.0.0.1", closed)):
        wait_until("the port to be reached", lambda: socks5(proxy, "web.internal", closed) == 0, 20)


def shared(lab):
    before = lab.active()
    # With more sessions, overlapping connections on a busy machine could start further sessions.
    with lab.proxy("--sessions", "1") as proxy:
        equal(socks5(proxy, "other.internal", lab.site.port), 0)
        for _ in range(10):
            equal(socks5(proxy, "OTHER.internal.", lab.site.port), 0)
        equal(lab.active() - before, 1)


def pac(proxy):
    get = lambda *more: run(["curl", "--silent", "--include", *more, f"http://{proxy.address}/proxy.pac"], env={"PATH": SEARCH_PATH}).ok()
    contains(get(), "application/x-ns-proxy-autoconfig", "nosniff", '["internal"]', f"SOCKS5 {proxy.address}", "DIRECT")
    contains(get("--header", "Host: rebound.example"), "404")
    body = get().split("\n\n", 1)[1]
    script = body + "const dnsDomainIs = (host, domain) => host.endsWith(domain);" + (
        "console.log(['web.internal', 'internal', 'notinternal', 'example.com'].map(host => FindProxyForURL('', host)).join('|'))"
    )
    ours = f"SOCKS5 {proxy.address}; PROXY {proxy.address}"
    equal(run(["node", "-e", script], env={"PATH": SEARCH_PATH}).ok(), f"{ours}|{ours}|DIRECT|DIRECT")


def broken(lab, proxy):
    for said in [b"\xff\xff", b"\x05", b"\x05\x01\x00\x05\x01\x00\x03\xff", b"\x04\x01", b"GET / HTT", b"\x05\x01\x02"]:
        with socket.create_connection(("127.0.0.1", proxy.port), 30) as stream:
            stream.sendall(said)
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_WR)
                while stream.recv(64):
                    pass
    with socket.create_connection(("127.0.0.1", proxy.port), 30) as stream:
        with contextlib.suppress(ConnectionError):
            stream.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000)
            while stream.recv(64):
                pass
    equal(socks5(proxy, "web.internal", lab.site.port), 0)


def chained(lab, proxy, *command, env=None):
    """A program without a proxy setting."""
    configuration = lab.folder / "proxychains.conf"
    configuration.write_text(f"strict_chain\nproxy_dns\nquiet_mode\n[ProxyList]\nsocks5 127.0.0.1 {proxy.port}\n")
    return run(["proxychains4", "-q", "-f", configuration, *command], env={"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", **(env or {})})


def psql(lab, proxy):
    folder = lab.folder / "postgres"
    folder.mkdir()
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    programs = max(POSTGRES.iterdir(), key=lambda version: int(version.name)) / "bin"
    environment, port = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}, free_port()
    run([programs / "initdb", "-D", folder / "data", "-U", "admin", "--auth=trust", "--no-sync"], env=environment, user=user).ok()
    options = ["-h", "127.0.0.1", "-p", str(port), "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    with Child([programs / "postgres", "-D", folder / "data", *options], env=environment, user=user) as server:
        wait_until("PostgreSQL to start", lambda: "ready to accept" in server.stderr)
        line = f"host=db.internal port={port} user=admin dbname=postgres"
        equal(chained(lab, proxy, "psql", line, "-At", "-c", "SELECT 6*7").ok().strip(), "42")
        long = "SELECT length(string_agg(md5(i::text), '')) FROM generate_series(1, 100000) i"
        equal(chained(lab, proxy, "psql", line, "-At", "-c", long).ok().strip(), "3200000")


def redis_cluster(lab, proxy):
    ports = [free_port() for _ in NODES]
    environment = {"PATH": SEARCH_PATH}
    with contextlib.ExitStack() as stack:
        for address, port in zip(NODES, ports):
            folder = lab.folder / address
            folder.mkdir()
            options = ["--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--save", "", "--dir", folder]
            stack.enter_context(Child(["redis-server", *options, "--cluster-port", str(free_port())], env=environment))
        ask = lambda port, *words: run(["redis-cli", "-p", str(port), *words], env=environment)
        for port in ports:
            wait_until("Redis to start", lambda: ask(port, "PING").code == 0)
        nodes = [f"127.0.0.1:{port}" for port in ports]
        run(["redis-cli", "--cluster", "create", *nodes, "--cluster-yes"], env=environment).ok()
        for port in ports:
            wait_until("the cluster to be complete", lambda: "cluster_state:ok" in ask(port, "CLUSTER", "INFO").stdout)
        # From now on the nodes report each other's private names.
        for address, port in zip(NODES, ports):
            ask(port, "CONFIG", "SET", "cluster-announce-hostname", address).ok()
            ask(port, "CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname").ok()
        learnt = lambda port: all(address in ask(port, "CLUSTER", "SLOTS").stdout for address in NODES)
        for port in ports:
            wait_until("the names to be known", lambda: learnt(port))
        client = lambda *words: chained(lab, proxy, "redis-cli", "-c", "-h", NODES[0], "-p", str(ports[0]), *words).ok().strip()
        # The slots of these keys belong to three nodes.
        for number in range(12):
            equal(client("SET", f"key:{number}", str(number)), "OK")
            equal(client("GET", f"key:{number}"), str(number))
        sizes = [int(ask(port, "DBSIZE").ok().split()[-1]) for port in ports]
        assert all(sizes) and sum(sizes) == 12, sizes


# The browser runs as root and without a network: it must not check for updates or use its sandbox.
CHROMIUM = [
    *["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"],
    *["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"],
]


def browser(lab, proxy):
    if not shutil.which("chromium", path=SEARCH_PATH):
        raise Skipped("there is no chromium; install it with: apt-get install chromium")
    profile = lab.folder / "profile"
    way = f"--proxy-server=socks5://{proxy.address}"
    arguments = [*CHROMIUM, f"--user-data-dir={profile}", way, "--virtual-time-budget=30000", "--dump-dom", f"http://web.internal:{lab.site.port}/"]
    environment = {"PATH": SEARCH_PATH, "HOME": str(lab.folder)}
    contains(run(arguments, 120, env=environment).ok(), f"<title>loaded {ASSETS}</title>")


def access(lab):
    with lab.proxy("--allow", "*.internal", "--deny", f"*:{lab.site.port + 1}", "--deny", "other.internal") as proxy:
        equal(socks5(proxy, "web.internal", lab.site.port), 0)
        for host, port in [("other.internal", lab.site.port), ("web.internal", lab.site.port + 1), ("169.254.169.254", 80), ("example.com", 80)]:
            equal((host, port, socks5(proxy, host, port)), (host, port, 2))
        ended = fetch(lab, "--proxy", f"http://{proxy.address}", "--proxytunnel", host="other.internal")
        contains(ended.stderr, "403")
        ended = fetch(lab, "--proxy", f"socks4a://{proxy.address}", host="other.internal")
        assert ended.code != 0, ended.stdout
    with lab.proxy() as proxy:
        equal(socks5(proxy, "169.254.169.254", 80), 2)


def limit(lab):
    with lab.proxy("--max-destinations", "1") as proxy:
        def connected(host):
            stream = socket.create_connection(("127.0.0.1", proxy.port), 30)
            stream.sendall(b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(host)]) + host.encode() + struct.pack(">H", lab.site.port))
            reply = stream.makefile("rb").read(12)
            return stream, reply[3]

        first, code = connected("web.internal")
        with first:
            equal(code, 0)
            equal(socks5(proxy, "other.internal", lab.site.port), 1)
            ended = fetch(lab, "--proxy", f"http://{proxy.address}", "--proxytunnel", host="other.internal")
            contains(ended.stderr, "503")
            contains(proxy.stderr, "WARN", "other.internal", "the limit of 1 destinations", "--max-destinations raises it")
        wait_until("the other one to get its place", lambda: socks5(proxy, "other.internal", lab.site.port) == 0, 30)


def idle(lab):
    before = lab.active()
    with lab.proxy("--idle", "1s") as proxy:
        equal(socks5(proxy, "web.internal", lab.site.port), 0)
        wait_until("the session to end", lambda: lab.active() == before, 30)
        equal(socks5(proxy, "web.internal", lab.site.port), 0)
        with ThreadPoolExecutor(8) as pool:
            equal(list(pool.map(lambda _: socks5(proxy, "web.internal", lab.site.port), range(8))), [0] * 8)


def listening(lab):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = Tool("socks", TARGET, "-D", str(taken.getsockname()[1]), env=lab.manager.variables).finish()
        equal(ended.code, 3)
        contains(ended.stderr, "already in use")
    with Tool("socks", TARGET, "-D", "*:0", env=lab.manager.variables) as proxy:
        contains(proxy.line(), "SOCKS5")
        wait_until("the warning", lambda: "other machines" in proxy.stderr)


def ends(lab):
    before = lab.active()
    proxy = lab.proxy()
    equal(socks5(proxy, "web.internal", lab.site.port), 0)
    assert lab.active() > before
    proxy.stop().ok()
    equal(lab.active(), before)
