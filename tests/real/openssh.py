"""OpenSSH: a separate server on the node, and ssh, scp and sftp that connect through Session Manager."""

import contextlib
import hashlib
import os
import pwd
import random
import shutil
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from aws_api import client
from database import free_port
from harness import SEARCH_PATH, TARGET, Child, Manager, aws_cli, binary, clean_environment, contains, equal, run, wait_until
from terminal import CTRL_D, Terminal

NEEDS = ["boto3", "aws", "setsid", "sshd", "ssh", "scp", "sftp", "ssh-keygen", "curl"]

FILE_BYTES = 50_000_000
LINES = 200


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-openssh-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(Server(folder))
        manager = stack.enter_context(Manager())
        ssh = Ssh(folder, server, manager.variables)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda each: suite.check(each[0], each[1], ssh), CHECKS))
        # These checks examine the existing sessions.
        suite.check("ControlMaster: five sessions over one connection", shared_connection, ssh)
        suite.check("ControlPersist: ssh in the background keeps its session", in_the_background, ssh)
        suite.check("ssh is killed: the session ends", killed, ssh)
        suite.check("all sessions have ended", none_is_left, ssh)
        suite.check("ssh-proxy --local: only its own Session Manager", embedded, Ssh(folder, server))


class Server:
    """sshd for the current user, with separate keys."""

    def __init__(self, folder):
        self.port = free_port()
        for name in ("host_key", "user_key"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], env=clean_environment()).ok()
        (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
        config = folder / "sshd_config"
        config.write_text(f"""\
            ListenAddress 127.0.0.1:{self.port}
            HostKey {folder}/host_key
            AuthorizedKeysFile {folder}/authorized_keys
            PidFile none
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            PermitRootLogin prohibit-password
            StrictModes no
            UsePAM no
            Subsystem sftp internal-sftp
            MaxStartups 100
        """)
        if os.geteuid() == 0:
            # sshd needs this folder for its confined process before the login. Containers may lack the folder.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.process = Child([which("sshd"), "-D", "-e", "-f", config], env=clean_environment())
        wait_until("sshd to listen", lambda: "Server listening" in self.process.stderr)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stop()


def which(program):
    """Returns the absolute path of a program, as sshd requires."""
    return shutil.which(program, path=SEARCH_PATH)


class Ssh:
    """OpenSSH's clients, with their own configuration."""

    def __init__(self, folder, server, variables=None):
        self.folder = folder
        self.server = server
        self.environment = clean_environment({**(variables or {}), "TERM": "xterm"})
        self.api = client(variables) if variables else None
        by_aws = f"{aws_cli()} ssm start-session --target %h --document-name AWS-StartSSHSession --parameters portNumber=%p"
        run([binary(), "plugin", "install", "--dir", folder], env=clean_environment()).ok()
        self.direct = self.configured("config", f"{binary()} ssh-proxy %h %p")
        self.through_plugin = self.configured("config-aws", f"env PATH={folder}:$PATH {by_aws}")

    def configured(self, name, proxy):
        """Returns options with which each of the clients uses this proxy."""
        folder = self.folder
        host_key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"node {host_key}")
        (folder / name).write_text(f"""\
            Host i-*
                User {pwd.getpwuid(os.geteuid()).pw_name}
                Port {self.server.port}
                ProxyCommand {proxy}
                HostKeyAlias node
                UserKnownHostsFile {folder}/known_hosts
                StrictHostKeyChecking yes
                IdentityFile {folder}/user_key
                IdentitiesOnly yes
                BatchMode yes
                LogLevel ERROR
        """)
        return ["-F", folder / name]

    def run(self, *arguments, way=None, **options):
        return run(["ssh", *(way or self.direct), *arguments], env=self.environment, **options)

    def child(self, *arguments):
        return Child(["ssh", *self.direct, *arguments], env=self.environment)

    def active(self):
        return [session["SessionId"] for session in self.api.describe_sessions(State="Active")["Sessions"]]


def remote_command(ssh):
    ended = ssh.run(TARGET, "echo to stdout; echo to stderr >&2; exit 7")
    equal((ended.code, ended.stdout, ended.stderr), (7, "to stdout", "to stderr"))


def remote_command_through_plugin(ssh):
    ended = ssh.run(TARGET, "echo to stdout; echo to stderr >&2; exit 7", way=ssh.through_plugin)
    equal((ended.code, ended.stdout, ended.stderr), (7, "to stdout", "to stderr"))


def scp(ssh):
    there_and_back(ssh, ssh.direct, "scp", FILE_BYTES)


def scp_through_plugin(ssh):
    there_and_back(ssh, ssh.through_plugin, "scp-aws", FILE_BYTES // 10)


def there_and_back(ssh, way, name, size):
    here, there, back = (ssh.folder / f"{name}-{place}" for place in ("here", "there", "back"))
    here.write_bytes(random.Random(5).randbytes(size))
    run(["scp", "-q", *way, here, f"{TARGET}:{there}"], env=ssh.environment, limit=180).ok()
    run(["scp", "-q", *way, f"{TARGET}:{there}", back], env=ssh.environment, limit=180).ok()
    wanted = digest(here)
    equal((digest(there), digest(back)), (wanted, wanted))


def digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sftp(ssh):
    here, there, back = (ssh.folder / f"sftp-{place}" for place in ("here", "there", "back"))
    here.write_bytes(random.Random(6).randbytes(FILE_BYTES))
    batch = ssh.folder / "batch"
    batch.write_text(f"put {here} {there}\nls -l {there}\nget {there} {back}\nrm {there}\n")
    listing = run(["sftp", *ssh.direct, "-b", batch, TARGET], env=ssh.environment).ok()
    contains(listing, f" {FILE_BYTES} ")
    equal(digest(back), digest(here))
    assert not there.exists()


def paste(ssh):
    """Sends much input to a terminal that reads slowly."""
    pasted = ssh.folder / "pasted"
    lines = [f"{number:04} {'grüße ' * 10}" for number in range(LINES)]
    with Terminal(["ssh", *ssh.direct, "-t", TARGET, f"echo ready; cat > {pasted}; echo do''ne"], ssh.environment) as terminal:
        terminal.expect("ready\r\n")
        terminal.type("".join(f"{line}\r" for line in lines))
        terminal.type(CTRL_D)
        terminal.expect("done\r\n")
        equal(terminal.ended(), 0)
    equal(pasted.read_text(), "".join(f"{line}\n" for line in lines))


def local_forward(ssh):
    with web() as served, ssh.child("-N", "-L", f"{(port := free_port())}:127.0.0.1:{served}", TARGET):
        fetched(ssh, f"http://127.0.0.1:{port}/")


def dynamic_forward(ssh):
    with web() as served, ssh.child("-N", "-D", f"127.0.0.1:{(port := free_port())}", TARGET):
        fetched(ssh, "--socks5-hostname", f"127.0.0.1:{port}", f"http://127.0.0.1:{served}/")


BODY = random.Random(7).randbytes(2_000_000)


@contextlib.contextmanager
def web():
    """Starts a web service and returns its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def fetched(ssh, *arguments):
    file = ssh.folder / f"fetched-{threading.get_ident()}"
    curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "60", "--output", file]
    wait_until("ssh to listen", lambda: run([*curl, *arguments], env=ssh.environment).code == 0)
    equal(hashlib.sha256(file.read_bytes()).digest(), hashlib.sha256(BODY).digest())


def shared_connection(ssh):
    """Several ssh sessions over one session of Session Manager."""
    socket = ssh.folder / "control"
    through = ["-o", f"ControlPath={socket}", "-o", "ControlMaster=auto"]
    before = set(ssh.active())
    with ssh.child("-N", *through, TARGET) as master:
        wait_until("the shared connection", socket.exists)
        mine = set(ssh.active()) - before
        with ThreadPoolExecutor(5) as pool:
            answers = pool.map(lambda number: ssh.run(*through, TARGET, f"echo {number}; exit {number}"), range(5))
            equal([(ended.code, ended.stdout) for ended in answers], [(number, str(number)) for number in range(5)])
        equal(set(ssh.active()) - before, mine)
        equal(len(mine), 1)
        ssh.run(*through, "-O", "exit", TARGET).ok()
        master.finish()


def in_the_background(ssh):
    """With ControlPersist, ssh continues as a master, in another process than the one that started the ProxyCommand."""
    socket = ssh.folder / "background"
    through = ["-o", f"ControlPath={socket}", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
    before = set(ssh.active())
    equal(ssh.run(*through, TARGET, "echo first").ok(), "first")
    mine = set(ssh.active()) - before
    equal(len(mine), 1)
    # Longer than the interval in which the proxy checks its parent.
    time.sleep(3)
    equal(ssh.run(*through, TARGET, "echo second").ok(), "second")
    equal(set(ssh.active()) - before, mine)
    ssh.run(*through, "-O", "exit", TARGET).ok()
    wait_until("the session to be terminated", lambda: not mine & set(ssh.active()), 10)


def killed(ssh):
    """When ssh is killed, the proxy detects this and ends the session."""
    before = set(ssh.active())
    child = Child(["ssh", *ssh.direct, TARGET, "echo here; cat"], env=ssh.environment, stdin=subprocess.PIPE)
    equal(child.line(), "here")
    mine = set(ssh.active()) - before
    child.process.kill()
    child.finish()
    wait_until("the session to be terminated", lambda: not mine & set(ssh.active()), 10)


def none_is_left(ssh):
    wait_until("all sessions to be terminated", lambda: ssh.active() == [], 10)


def embedded(ssh):
    way = ssh.configured("config-local", f"{binary()} ssh-proxy --local %h %p")
    ended = ssh.run(TARGET, "echo hi", way=way)
    equal((ended.code, ended.stdout, ended.stderr), (0, "hi", ""))


CHECKS = [
    ("a remote command: both outputs and its exit code", remote_command),
    ("the same through the AWS CLI and the plugin", remote_command_through_plugin),
    (f"scp: {FILE_BYTES // 10**6} MB each way", scp),
    (f"scp through the AWS CLI and the plugin: {FILE_BYTES // 10**7} MB each way", scp_through_plugin),
    ("sftp: put, ls, get, rm", sftp),
    (f"{LINES} lines pasted into cat", paste),
    ("ssh -L", local_forward),
    ("ssh -D", dynamic_forward),
]
