"""`forward --relay` with MariaDB's own programs, and `socks --relay`. This machine is the node."""

import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
from pathlib import Path

import signed
import socks
from database import Client, Server, digest, free_port, load_and_read
from harness import TARGET, Child, Manager, Tool, binary, clean_environment, contains, equal, wait_until

NEEDS = ["mariadbd", "mariadb-install-db", "mariadb", "mariadb-dump", "unshare", "curl", "boto3"]

DUMP = ["--skip-dump-date", "--skip-comments", "--quick", "--single-transaction", "test", "load_test"]


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-relay-") as name:
        folder = Path(name)
        server = Server(folder)
        with server.process, Manager("--profile", "real") as manager:
            with_server(suite, server, manager, folder)
        with Manager() as manager, socks.Site() as site:
            lab = socks.Lab(manager, site, folder)
            suite.check("socks: one session for all destinations, and each failure as it occurred on the node", dial, lab)
            suite.check("socks: a killed relay is started again for the next connection", dial_again, lab)
            suite.check("socks: permanently lost sessions end the command with their error", lost, lab)
            suite.check("socks: no session and no relay is left", lambda: equal((lab.active(), relays()), (0, [])))
    suite.check("a node where no program can be executed: one line, and the tunnel works", no_program, "noexec")
    suite.check("a node whose disk is full: one line, and the tunnel works", no_program, "size=64k")


def with_server(suite, server, manager, folder):
    load_and_read(server.direct, folder)
    wanted = digest(server.direct.environment, ["mariadb-dump", *server.direct.where(), *DUMP])
    with Tunnel(manager, server.port, "--sessions", "8") as tunnel:
        through = Client(server, "--protocol=tcp", "--host=127.0.0.1", f"--port={tunnel.port}")
        suite.check("a dump through eight sessions equals a dump at the server", dump, through, wanted)
        suite.check("a dump whose sessions are ended one after the other", dump_while_sessions_end, through, wanted, manager, tunnel)
        suite.check("another client at the relay's port gets no data", stranger)
        suite.check("a killed relay fails the dump, and the next one works", killed, through, wanted)
    suite.check("no relay runs after its tunnel has ended", lambda: wait_until("the relays to end", lambda: not relays()))


def dump(through, wanted):
    equal(digest(through.environment, ["mariadb-dump", *through.where(), *DUMP]), wanted)


def dump_while_sessions_end(through, wanted, manager, tunnel):
    faults(manager, "end,nth=3000,times=4")
    try:
        dump(through, wanted)
    finally:
        faults(manager)
    # The command fails if there was no relay.
    tunnel.event("session_lost")


def faults(manager, *wanted):
    """Sets faults. The control endpoint accepts only signed requests; curl signs them."""
    variables = manager.variables
    body = '{"faults": [%s]}' % ", ".join(f'"{fault}"' for fault in wanted)
    key = f"{variables['AWS_ACCESS_KEY_ID']}:{variables['AWS_SECRET_ACCESS_KEY']}"
    sign = f"aws:amz:{variables['AWS_REGION']}:ssm"
    url = f"{variables['AWS_ENDPOINT_URL']}/faults"
    args = ["curl", "-sS", "--fail", "-X", "PUT", "--aws-sigv4", sign, "--user", key, "--data", body, url]
    subprocess.run(args, check=True, capture_output=True, timeout=30)


def stranger():
    [pid] = relays()
    with socket.create_connection(("127.0.0.1", listening_port(pid)), timeout=30) as stream:
        contains(stream.recv(64), b"SSMR")
        stream.sendall(b"SSMC\x03\0\0\0" + bytes(16) + bytes(32))
        equal(stream.recv(64), b"")


def killed(through, wanted):
    program = subprocess.Popen(
        ["mariadb-dump", *through.where(), *DUMP],
        env=through.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    program.stdout.read(1 << 20)
    for pid in relays():
        os.kill(pid, signal.SIGKILL)
    program.communicate(timeout=60)
    assert program.returncode != 0, "the dump did not detect that it is incomplete"
    dump(through, wanted)


def dial(lab):
    closed = free_port()
    with lab.proxy("--relay", "--sessions", "1") as proxy, socket.create_server(("127.0.0.1", 0)) as other:
        equal(lab.active(), 1)
        ways = [["--proxy", f"{way}://{proxy.address}"] for way in ("socks5h", "socks4a")] + [["--proxy", f"http://{proxy.address}", "--proxytunnel"]]
        for host in ("localhost", "127.0.0.1"):
            for way in ways:
                contains(socks.fetch(lab, *way, host=host).ok(), "<title>private</title>")
        port = other.getsockname()[1]
        equal(socks.socks5(proxy, "localhost", port), 0)
        # No answer is cached: a later failure is reported too.
        other.close()
        equal(socks.socks5(proxy, "localhost", port), 5)
        equal(socks.socks5(proxy, "localhost", closed), 5)
        equal(socks.socks5(proxy, "no-such-host.invalid", 80), 4)
        equal(socks.socks5(proxy, "169.254.169.254", 80), 2)
        told = lambda host, port: socks.fetch(lab, "--proxy", f"http://{proxy.address}", "--proxytunnel", "--include", host=host, port=port)
        contains(told("localhost", closed).stderr, "502")
        contains(proxy.stderr, f"localhost:{closed}: the node could not connect: Connection refused", "no-such-host.invalid:80: ")
        equal(lab.active(), 1)
        proxy.stop().ok()


def dial_again(lab):
    with lab.proxy("--relay") as proxy:
        equal(socks.socks5(proxy, "localhost", lab.site.port), 0)
        [pid] = relays()
        os.kill(pid, signal.SIGKILL)
        wait_until("it to be noticed", lambda: "the relay on" in proxy.stderr and "is gone" in proxy.stderr)
        equal(socks.socks5(proxy, "localhost", lab.site.port), 0)
        assert relays() not in ([], [pid]), relays()
        proxy.stop().ok()
    wait_until("the relay to end", lambda: not relays())


def lost(lab):
    with lab.proxy("--relay", "--sessions", "1") as proxy:
        equal(socks.socks5(proxy, "localhost", lab.site.port), 0)
        faults(lab.manager, "api,operation=StartSession,answer=forbidden")
        try:
            signed.control(lab.manager.variables, "terminate", "text=Enough")
            # A session is started when a connection needs one.
            with socket.create_connection(("127.0.0.1", proxy.port), 30) as stream:
                stream.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\0\0\x01" + struct.pack(">H", lab.site.port))
                ended = proxy.finish()
        finally:
            faults(lab.manager)
        equal(ended.code, 5)
        contains(ended.stderr, "ssm:StartSession")
    # No client could end the relay.
    for pid in relays():
        os.kill(pid, signal.SIGKILL)
    wait_until("the relay to end", lambda: not relays())


def no_program(option):
    """A separate node, where only file systems with this option are writable."""
    # These file systems hide the folder of the command.
    mounts = "; ".join(f"mount -t tmpfs -o {option} none {place}" for place in ["/tmp", "/var/tmp", "/dev/shm"])
    script = f'exec 9<"$0"; {mounts}; exec /proc/self/fd/9 local'
    environment = clean_environment({"HOME": "/tmp/home"})
    with Child(["unshare", "-m", "sh", "-c", script, binary()], env=environment) as node:
        wait_until("the local Session Manager", lambda: "Ctrl-C" in node.stderr)
        node.variables = dict(line.removeprefix("export ").split("=", 1) for line in node.lines_so_far())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with Tool(
                *["forward", TARGET, "-o", "json", "--relay", "-L", f"0:127.0.0.1:{listener.getsockname()[1]}"],
                env=node.variables,
            ) as tunnel:
                warning = tunnel.event("warning")["text"]
                contains(warning, "no relay on", "works without it")
                equal("\n" in warning, False)
                port = tunnel.event("ready")["port"]
                with socket.create_connection(("127.0.0.1", port), timeout=30):
                    listener.settimeout(30)
                    listener.accept()[0].close()
            with Tool("socks", TARGET, "-D", "0", "--relay", env=node.variables) as proxy:
                proxy.port = int(proxy.line().split(" on ")[1].split()[0].rsplit(":")[-1])
                wait_until("the warning", lambda: "warning: no relay on" in proxy.stderr)
                contains(proxy.stderr, "each destination gets sessions of its own")
                equal(socks.socks5(proxy, "127.0.0.1", listener.getsockname()[1]), 0)


def relays():
    """Returns the relays that this run's nodes started, without the programs that copy a download from them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            program = os.readlink(process / "exe")
            arguments = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if program.startswith(os.environ["TESTS_HOME"]) and "/ssm-relay-" in program and b"serve" in arguments:
            found.append(int(process.name))
    return found


def listening_port(pid):
    """Returns the port of 127.0.0.1 on which a process listens."""
    inodes = {re.sub(r"\D", "", os.readlink(link)) for link in Path(f"/proc/{pid}/fd").iterdir() if "socket" in os.readlink(link)}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            return int(fields[1].split(":")[1], 16)
    raise AssertionError("it does not listen")


class Tunnel(Tool):
    def __init__(self, manager, port, *more):
        spec = f"0:127.0.0.1:{port}"
        super().__init__("forward", TARGET, "-o", "json", "--relay", "-L", spec, *more, env=manager.variables)
        self.port = self.event("ready")["port"]
