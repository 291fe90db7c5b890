"""Real failures around a tunnel: the service is killed, the tunnel's process is stopped, and a database and scp work
while the service closes the WebSocket repeatedly."""

import contextlib
import hashlib
import os
import random
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
import zlib
from pathlib import Path

from database import Client, Server, digest, free_port
from harness import SEARCH_PATH, TARGET, Child, Tool, binary, clean_environment, equal, run, wait_until
from signed import control

NEEDS = ["boto3", "mariadbd", "mariadb-install-db", "mariadb", "sshd", "ssh-keygen", "scp"]

# Longer than the tunnel needs to detect that it was stopped.
STANDSTILL_SECONDS = 10
ROWS = 4000
FILE_BYTES = 50_000_000
# The fault: AWS does this every hour.
BYE = ["--fault", "bye,every=700ms"]
# The duration is the same on machines of any speed.
BYE_BY_COUNT = ["--fault", "close,nth=6000"]


def checks(suite):
    suite.check("a service that is killed and started again on its port is reached again", killed_service)
    suite.check("a tunnel that was stopped while its path died recovers", standstill)
    with tempfile.TemporaryDirectory(prefix="tests-reliability-") as name:
        folder = Path(name)
        server = Server(folder)
        with server.process:
            suite.check("a long transaction under load survives the service's closes", transaction, server)
    with tempfile.TemporaryDirectory(prefix="tests-reliability-") as name:
        suite.check(f"scp of {FILE_BYTES // 10**6} MB survives the service's closes", copy, Path(name))


class Manager(Tool):
    """`aws-ssm-forward local`, and the variables for its clients."""

    def __init__(self, *args):
        super().__init__("local", *args)
        wait_until("the local Session Manager", lambda: "Ctrl-C" in self.stderr)
        self.variables = dict(line.removeprefix("export ").split("=", 1) for line in self.lines_so_far())

    def control(self, effect):
        control(self.variables, effect)

    def forward(self, port):
        return Tool("forward", "--target", TARGET, "-o", "json", "-L", f"0:127.0.0.1:{port}", env=self.variables)


@contextlib.contextmanager
def echo():
    """Starts an echo service and returns its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(stream):
            with stream, contextlib.suppress(OSError):
                while data := stream.recv(1 << 16):
                    stream.sendall(data)

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        # Without the shutdown, the thread that waits in accept keeps the socket open.
        listener.shutdown(socket.SHUT_RDWR)


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def ask(stream, text):
    stream.sendall(text)
    got = b""
    while len(got) < len(text):
        piece = stream.recv(len(text) - len(got))
        assert piece, f"a normal end after {got!r}"
        got += piece
    equal(got, text)


def killed_service():
    # The next Session Manager must accept the same credentials.
    arguments = ["--listen", f"127.0.0.1:{free_port()}", "--insecure-credentials", "fixed"]
    with echo() as service, Manager(*arguments) as manager, manager.forward(service) as tunnel:
        port = tunnel.event("ready")["port"]
        with connect(port) as before:
            ask(before, b"before")
            manager.stop(signal.SIGKILL)
            tunnel.event("reconnecting")
            with connect(port) as waiting, Manager(*arguments):
                # The session ended with the Session Manager, which must not look like the end of the data.
                try:
                    raise AssertionError(f"no reset, but {before.recv(1)!r}")
                except ConnectionResetError:
                    pass
                equal(tunnel.event("session_lost")["connections"] >= 1, True)
                tunnel.event("restarted")
                ask(waiting, b"it waited for the new session")
                tunnel.stop().ok()


def standstill():
    with echo() as service, Manager() as manager, manager.forward(service) as tunnel:
        port = tunnel.event("ready")["port"]
        with connect(port) as stream:
            ask(stream, b"before")
            tunnel.process.send_signal(signal.SIGSTOP)
            manager.control("black-hole")
            stream.sendall(b"meanwhile")
            time.sleep(STANDSTILL_SECONDS)
            tunnel.process.send_signal(signal.SIGCONT)
            woken = time.monotonic()
            equal(stream.recv(9, socket.MSG_WAITALL), b"meanwhile")
            took = time.monotonic() - woken
            # An immediate ping, and 10 s for its answer. Without the detection, the recovery would take 30 s more.
            assert took < 20, f"{took:.1f} s"
        tunnel.event("reconnected")
        tunnel.stop().ok()


def transaction(server):
    with Manager(*BYE) as manager, manager.forward(server.port) as tunnel:
        port = tunnel.event("ready")["port"]
        client = Client(server, "--protocol=tcp", "--host=127.0.0.1", f"--port={port}")
        client.ask("CREATE TABLE entries (id INT PRIMARY KEY, body MEDIUMTEXT CHARACTER SET ascii) ENGINE=InnoDB")
        rows = random.Random(2)
        bodies = [rows.randbytes(500).hex() for _ in range(ROWS)]
        load = client.arguments("--quick", "--execute=SELECT seq, REPEAT(MD5(seq), 20) FROM seq_1_to_40000")
        wanted = digest(server.direct.environment, [*server.direct.arguments(), *load[-2:]])
        digests = []
        reader = threading.Thread(target=lambda: digests.extend(digest(client.environment, load) for _ in range(2)))
        reader.start()
        with client.start("--skip-reconnect", stdin=subprocess.PIPE) as writer:
            writer.type("START TRANSACTION;")
            for number, body in enumerate(bodies):
                writer.type(f"INSERT INTO entries VALUES ({number}, '{body}');")
                if number % (ROWS // 8) == 0:
                    writer.type("SELECT SLEEP(0.4);")
            writer.type("COMMIT;")
            writer.process.stdin.close()
            writer.finish().ok()
        reader.join(60)
        equal(digests, [wanted] * 2)
        total = 0
        for body in bodies:
            total ^= zlib.crc32(body.encode())
        equal(server.direct.ask("SELECT COUNT(*), BIT_XOR(CRC32(body)) FROM entries"), f"{ROWS}\t{total}")
        for _ in range(3):
            tunnel.event("reconnected")
        tunnel.stop().ok()


def copy(folder):
    sent, received = folder / "sent", folder / "received"
    sent.write_bytes(random.Random(3).randbytes(FILE_BYTES))
    with SshServer(folder) as server, Manager(*BYE_BY_COUNT) as manager:
        proxy = folder / "proxy"
        proxy.write_text(f'#!/bin/sh\nexec "{binary()}" -v ssh-proxy "$1" "$2" 2>>"{folder}/log"\n')
        proxy.chmod(stat.S_IRWXU)
        options = [
            *["-F", "none", "-i", server.key, "-P", str(server.port), "-o", f"ProxyCommand={proxy} %h %p"],
            *["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={folder}/known"],
        ]
        environment = clean_environment(manager.variables)
        for source, destination in [(sent, f"{TARGET}:{received}"), (f"{TARGET}:{received}", folder / "back")]:
            run(["scp", "-q", *options, source, destination], limit=300, env=environment).ok()
        equal(sha256(received), sha256(sent))
        equal(sha256(folder / "back"), sha256(sent))
        closes = (folder / "log").read_text().count("reconnecting")
        assert closes >= 3, f"only {closes} closes: {(folder / 'log').read_text()}"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class SshServer(Child):
    """A separate sshd, which accepts only this user's key."""

    def __init__(self, folder):
        self.port, self.key = free_port(), folder / "key"
        for key in (self.key, folder / "host_key"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], env={"PATH": SEARCH_PATH}).ok()
        (folder / "key.pub").rename(folder / "authorized_keys")
        if os.geteuid() == 0:
            # sshd needs this folder for its confined process before a login.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = folder / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
            "Subsystem sftp internal-sftp\n"
        )
        # sshd starts itself again for each connection, by its absolute path.
        program = next(path for place in SEARCH_PATH.split(":") if (path := Path(place) / "sshd").exists())
        super().__init__([program, "-D", "-e", "-f", config], env={"PATH": SEARCH_PATH})
        wait_until("sshd to start", lambda: "listening" in self.stderr)
