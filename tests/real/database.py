"""MariaDB as the private database. Its own clients connect through `forward --local`."""

import base64
import contextlib
import hashlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import SEARCH_PATH, Child, Tool, contains, equal, run, wait_until

NEEDS = ["mariadbd", "mariadb-install-db", "mariadb", "mariadb-dump"]

LOAD_BYTES = 64_000_000
CLIENTS = 32
IDLE_SECONDS = 120


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-database-") as name:
        folder = Path(name)
        server = Server(folder)
        with server.process:
            with_server(suite, server, folder)


def with_server(suite, server, folder):
    closed = free_port()
    unix_socket = folder / "tunnel.sock"
    tunnel = Tool(
        *["forward", "--local", "-o", "json", "-L", f"0:127.0.0.1:{server.port}"],
        *["-L", f"0:127.0.0.1:{closed}", "-L", f"unix:{unix_socket}:127.0.0.1:{server.port}"],
    )
    with tunnel:
        ready = {event["forward"]: event for event in (tunnel.event("ready") for _ in range(3))}
        port, refused = ready[0]["port"], ready[1]["port"]
        through = Client(server, "--protocol=tcp", "--host=127.0.0.1", f"--port={port}")
        through_socket = Client(server, f"--socket={unix_socket}")
        with ThreadPoolExecutor(1) as pool:
            idle = pool.submit(stay_idle, through)
            suite.check("a query through the tunnel", query, through)
            suite.check("a query through a Unix socket", query, through_socket)
            suite.check(f"{LOAD_BYTES // 10**6} MB are read as they were loaded", load_and_read, through, folder)
            suite.check("a dump through the tunnel equals a dump at the server", dump, server, through)
            suite.check(f"{CLIENTS} clients at the same time", crowd, server, through)
            suite.check("a server that closes first: its last words, then the end of the file", closed_first, port)
            suite.check("a connection that the server kills fails immediately, the next one works", killed, server, through)
            suite.check("a refused port fails, and works when its server runs", refused_port, refused, closed)
            suite.check("an unknown host is named, and ends the command", unknown_host)
            suite.check(f"a connection that was idle for {IDLE_SECONDS} s continues", idle.result)
        suite.check("SIGTERM ends the command with exit code 0", lambda: tunnel.stop().ok())


def query(client):
    equal(client.ask("SELECT 6 * 7, REPEAT('ä', 3)"), "42\täää")


def load_and_read(client, folder):
    """Loads and reads incompressible text, so that compression on the path has no effect."""
    file = folder / "rows.tsv"
    rows = random.Random(1)
    with file.open("w") as out:
        for number in range(LOAD_BYTES // 1000):
            out.write(f"{number:07}\t{base64.b64encode(rows.randbytes(744)).decode()}\n")
    assert file.stat().st_size >= LOAD_BYTES
    client.ask(
        "CREATE TABLE load_test (id INT PRIMARY KEY, body VARCHAR(1000) CHARACTER SET ascii) ENGINE=InnoDB; "
        f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE load_test"
    )
    arguments = client.arguments("--quick", "--execute=SELECT LPAD(id, 7, 0), body FROM load_test ORDER BY id")
    equal(digest(client.environment, arguments), hashlib.sha256(file.read_bytes()).hexdigest())


def dump(server, through):
    def of(client):
        program = "mariadb-dump"
        options = ["--skip-dump-date", "--skip-comments", "--quick", "--single-transaction", "test", "load_test"]
        return digest(client.environment, [program, *client.where(), *options])

    equal(of(through), of(server.direct))


def crowd(server, client):
    """Lets all clients wait for a lock, so that they are connected at the same time."""
    server.direct.ask("CREATE TABLE crowd (id INT PRIMARY KEY, connection BIGINT)")
    with Child(server.direct.arguments("--unbuffered"), stdin=subprocess.PIPE, env=server.direct.environment) as gate:
        gate.type("LOCK TABLES crowd WRITE; SELECT 'locked';")
        equal(gate.line(), "locked")
        insert = "INSERT INTO crowd VALUES ({}, CONNECTION_ID())"
        clients = [client.start(f"--execute={insert.format(number)}") for number in range(CLIENTS)]
        waiting = "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'INSERT INTO crowd%'"
        wait_until("all clients to be connected", lambda: server.direct.ask(waiting) == str(CLIENTS))
        gate.type("UNLOCK TABLES;")
        for each in clients:
            each.finish().ok()
        gate.process.stdin.close()
        gate.finish().ok()
    equal(client.ask("SELECT COUNT(*), COUNT(DISTINCT connection) FROM crowd"), f"{CLIENTS}\t{CLIENTS}")


def closed_first(port):
    """The server reports input that is not MySQL, and closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as stream:
        contains(stream.recv(4096), b"MariaDB")
        stream.sendall(b"\x04\x00\x00\x01nope")
        said = b"".join(iter(lambda: stream.recv(4096), b""))
    contains(said, b"handshake")


def killed(server, client):
    with client.start("--execute=SELECT SLEEP(600)") as asleep:
        find = "SELECT id FROM information_schema.processlist WHERE info = 'SELECT SLEEP(600)'"
        server.direct.ask(f"KILL CONNECTION {wait_until('the query to run', lambda: server.direct.ask(find))}")
        ended = asleep.finish(10)
    assert ended.code != 0, "the client did not detect it"
    contains(ended.stderr, "ERROR")
    query(client)


def refused_port(tunnel_port, closed):
    for _ in range(2):
        equal(read_all(tunnel_port), b"")
    # The same tunnel works as soon as a server listens.
    with socket.create_server(("127.0.0.1", closed)) as listener:
        with socket.create_connection(("127.0.0.1", tunnel_port), timeout=30) as stream:
            listener.settimeout(30)
            with listener.accept()[0] as served:
                served.sendall(b"here I am")
            equal(stream.recv(64), b"here I am")


def read_all(port):
    """Returns the data received until the connection ends in any way. Fails if the connection does not end."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stream:
        try:
            return b"".join(iter(lambda: stream.recv(4096), b""))
        except ConnectionResetError:
            return b""


def unknown_host():
    ended = Tool("forward", "--local", "-L", "0:no-such-host.invalid:3306").finish()
    assert ended.code in (6, 8), f"exit code {ended.code}"
    contains(ended.stderr, "error: ", "no-such-host.invalid")


def stay_idle(client):
    """Checks that the answers before and after the idle time use the same connection."""
    with client.start("--unbuffered", "--skip-reconnect", stdin=subprocess.PIPE) as asker:
        asker.type("SELECT CONNECTION_ID();")
        before = asker.line()
        time.sleep(IDLE_SECONDS)
        asker.type("SELECT CONNECTION_ID();")
        equal(asker.line(), before)
        asker.process.stdin.close()
        asker.finish().ok()


class Client:
    """MariaDB's own programs, with one path to the server."""

    def __init__(self, server, *way):
        self.way = way
        self.user = server.user
        self.environment = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "MYSQL_PWD": server.password}

    def where(self):
        return ["--no-defaults", *self.way, "--skip-ssl", f"--user={self.user}", "--default-character-set=utf8mb4"]

    def arguments(self, *more):
        return ["mariadb", *self.where(), "--batch", "--raw", "--skip-column-names", "--local-infile", "--database=test", *more]

    def start(self, *more, **options):
        return Child(self.arguments(*more), env=self.environment, **options)

    def ask(self, sql):
        return run(self.arguments(f"--execute={sql}"), limit=180, env=self.environment).ok()


def digest(environment, arguments):
    """Returns the SHA-256 of a program's output."""
    sha = hashlib.sha256()
    program = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE)
    try:
        for chunk in iter(lambda: program.stdout.read1(1 << 16), b""):
            sha.update(chunk)
        equal(program.wait(60), 0)
    finally:
        program.kill()
    return sha.hexdigest()


class Server:
    """A separate MariaDB: data in a temporary folder, a free port of 127.0.0.1, a socket."""

    password = "not-a-secret"

    def __init__(self, folder, port=None, options=(), user="app"):
        self.user = user
        self.port = port or free_port()
        data, temporary, sock = folder / "data", folder / "tmp", folder / "server.sock"
        data.mkdir()
        temporary.mkdir()
        account = None
        if os.geteuid() == 0:
            account = "mysql"
            for owned in [folder, data, temporary]:
                shutil.chown(owned, account)
        # A server that starts removes all temporary tables in its folder for temporary tables, even those of another server.
        environment = {"PATH": SEARCH_PATH, "TMPDIR": temporary}
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal"]
        run([*install, "--skip-test-db"], limit=180, env=environment, user=account).ok()
        self.process = Child(
            [
                *["mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={sock}", f"--port={self.port}"],
                *[f"--pid-file={data}/pid", "--bind-address=127.0.0.1", "--skip-name-resolve", "--local-infile=1"],
                *["--innodb-flush-log-at-trx-commit=0", "--max-connections=100", "--character-set-server=utf8mb4"],
                *options,
            ],
            env=environment,
            user=account,
        )
        root = Client(self, f"--socket={sock}")
        root.user, root.environment = "root", {"PATH": SEARCH_PATH}
        setup = (
            "CREATE DATABASE test; "
            f"CREATE USER '{self.user}'@'127.0.0.1' IDENTIFIED BY '{self.password}'; GRANT ALL ON *.* TO '{self.user}'@'127.0.0.1'; "
            f"CREATE USER '{self.user}'@'localhost' IDENTIFIED BY '{self.password}'; GRANT ALL ON *.* TO '{self.user}'@'localhost'"
        )
        ping = ["mariadb", *root.where(), "--execute=SELECT 1"]
        wait_until("MariaDB to start", lambda: run(ping, env=root.environment).code == 0)
        run(["mariadb", *root.where(), f"--execute={setup}"], env=root.environment).ok()
        self.direct = Client(self, f"--socket={sock}")


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
