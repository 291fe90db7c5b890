"""`run`: a command whose tunnels are ready, with and without a terminal, as root and as another user."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
from harness import TARGET, Manager, Tool, clean_environment, contains, equal, wait_until
from services import Upper
from terminal import CTRL_C, Terminal

NEEDS = ["setsid", "bash", "setpriv", "unshare"]

CTRL_Z = "\x1a"
NOBODY = 65534

# A program that sends a word through the tunnel to the address in its arguments, and prints the answer.
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as stream:
    stream.sendall(b"word")
    print(stream.makefile("rb").read(4).decode())
"""


def checks(suite):
    hosts = ["one.example", "two.example"]
    with Upper() as service, Manager(*[word for host in hosts for word in ("--host", f"{host}=127.0.0.1")]) as manager:
        lab = Lab(service, manager)
        suite.check("the arguments and the environment contain the address of a tunnel that answers", words, lab)
        suite.check("several tunnels are named", several, lab)
        suite.check("a tunnel of the configuration has its own name", configured, lab)
        suite.check("a pipe works, and standard output contains nothing else", pipe, lab)
        suite.check("the exit code is the command's, a signal's is 128 and more", exit_codes, lab)
        suite.check("no command: 127, not executable: 126, and AWS is not called", no_command)
        suite.check("a remote port that refuses: 7, and the command does not run", refused, lab)
        suite.check("signals are forwarded to the command", signals, lab)
        suite.check("without a terminal: SIGTSTP stops the command, SIGCONT continues it", stopped_and_continued, lab)
        suite.check("Ctrl-C before the command runs ends it with 130", stopped_early, lab)
        suite.check("kill -9 ends the command too", killed, lab)
        suite.check("the sessions end with the command", sessions_end, lab)
        suite.check("an ignored signal stays ignored for the command", ignored, lab)
        suite.check("on a terminal: Ctrl-C, Ctrl-Z, fg, the size of the window", terminal, lab)
        suite.check("without a command: a shell with job control", own_shell, lab)
        suite.check("real names: two hosts on one port, each at its own address", real_names, lab)
        suite.check("real names without root: files keep their owner", real_names_of_a_user, lab)
        suite.check("real names end with kill -9 too", real_names_killed, lab)
        suite.check("where namespaces are not allowed: the error names the setting", no_namespaces, lab)


class Lab:
    def __init__(self, service, manager):
        self.service = service
        self.port = service.port
        self.variables = manager.variables
        self.api = manager.variables["AWS_ENDPOINT_URL"]

    def run(self, *arguments, to=None, more=None):
        to = to or [f"0:127.0.0.1:{self.port}"]
        forwards = [word for spec in to for word in ("-L", spec)]
        return Tool("run", TARGET, *forwards, *arguments, env={**self.variables, **(more or {})})


def asking(*words):
    return ["--", sys.executable, "-c", ASK, *words]


def words(lab):
    equal(lab.run(*asking("{host}", "{port}")).finish().ok(), "WORD")
    script = f"{sys.executable} -c '{ASK}' $SSM_FORWARD_127_0_0_1_HOST ${{SSM_FORWARD_ADDR#*:}}"
    equal(lab.run("--", "sh", "-c", script).finish().ok(), "WORD")
    equal(lab.run("--", "echo", "{{addr}}", "{print}", "{port", "a{host}b").finish().ok(), "{addr} {print} {port a127.0.0.1b")


def several(lab):
    to = [f"0:one.example:{lab.port}", f"0:two.example:{lab.port}"]
    equal(lab.run(*asking("{two_example.host}", "{two_example.port}"), to=to).finish().ok(), "WORD")
    ended = lab.run(*asking("{host}", "{port}"), to=to).finish()
    equal(ended.code, 2)
    contains(ended.stderr, "{one_example.host} or {two_example.host}")


def configured(lab):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tunnels.toml"
        file.write_text(f'[tunnels.my-service]\ntarget = "{TARGET}"\nremote = "one.example:{lab.port}"\nlocal = 0\n')
        run = lambda *words: Tool("run", "--config", file, *words, env=lab.variables).finish()
        equal(run("my-service", *asking("{my_service.host}", "{port}")).ok(), "WORD")
        equal(run("my-service", "--", "sh", "-c", "echo $SSM_FORWARD_MY_SERVICE_HOST").ok(), "127.0.0.1")
        ended = run("my-servic", "--", "true")
        equal(ended.code, 2)
        contains(ended.stderr, "did you mean `my-service`")


def pipe(lab):
    command = Tool.__new__(Tool)
    arguments = [harness.binary(), "run", TARGET, "-L", f"0:127.0.0.1:{lab.port}", "--", "cat"]
    harness.Child.__init__(command, arguments, stdin=subprocess.PIPE, env=clean_environment(lab.variables))
    command.type("through")
    command.process.stdin.close()
    ended = command.finish()
    equal((ended.ok(), ended.stderr), ("through", ""))


def exit_codes(lab):
    equal(lab.run("--", "sh", "-c", "exit 37").finish().code, 37)
    equal(lab.run("--", "sh", "-c", "kill -KILL $$").finish().code, 128 + signal.SIGKILL)


def no_command():
    # There are no credentials, so a call of AWS would be another error.
    with tempfile.NamedTemporaryFile() as file:
        for command, code, part in [("no-such-command", 127, "not found"), (file.name, 126, "not executable"), ("/", 126, "folder")]:
            ended = Tool("run", TARGET, "-L", "0:db.internal:1", "--", command).finish()
            equal(ended.code, code)
            contains(ended.stderr, "error: ", part)
            equal(len(ended.stderr.splitlines()), 1)


def refused(lab):
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "ran"
        ended = lab.run("--", "touch", str(mark), to=["0:127.0.0.1:1"]).finish()
        equal((ended.code, mark.exists()), (7, False))


TRAPS = """
import os, signal, sys
# os.write instead of print, because a signal may arrive while another one is being printed.
say = lambda word: os.write(1, word.encode() + b"\\n")
def tell(number, _):
    say(signal.Signals(number).name)
    if number == signal.SIGTERM:
        sys.exit(9)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, tell)
say("ready")
while True:
    signal.pause()
"""


def signals(lab):
    command = lab.run("--", sys.executable, "-c", TRAPS)
    equal(command.line(), "ready")
    for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        command.process.send_signal(number)
        equal(command.line(), number.name)
    equal(command.finish().code, 9)


def stopped_and_continued(lab):
    arguments = [harness.binary(), "run", TARGET, "-L", f"0:127.0.0.1:{lab.port}", "--", sys.executable, "-c", TRAPS]
    command = harness.Child(arguments, env=clean_environment(lab.variables), process_group=0)
    equal(command.line(), "ready")
    parent = command.process.pid
    (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    command.process.send_signal(signal.SIGTSTP)
    wait_until("the command to stop", lambda: state(child) == "T")
    command.process.send_signal(signal.SIGCONT)
    wait_until("the command to continue", lambda: state(child) != "T")
    command.process.send_signal(signal.SIGTERM)
    equal(command.line(), "SIGTERM")
    equal(command.finish().code, 9)


def stopped_early(lab):
    # The API never answers, so `run` waits for its session.
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "ran"
        command = lab.run("--wait-connected", "60s", "--", "touch", str(mark), to=["0:127.0.0.1:1"], more={"AWS_ENDPOINT_URL": SILENT.url})
        SILENT.asked()
        command.process.send_signal(signal.SIGINT)
        equal((command.finish().code, mark.exists()), (130, False))


class Silent:
    """An API that accepts a request and never answers."""

    def __init__(self):
        import socket

        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.taken = []

    def asked(self):
        stream, _ = self.listener.accept()
        stream.recv(1)
        self.taken.append(stream)


SILENT = Silent()


def killed(lab):
    command = lab.run("--", "sh", "-c", "echo $$; exec sleep 600")
    pid = int(command.line())
    command.process.kill()
    wait_until("the command to end", lambda: has_ended(pid))


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def has_ended(pid):
    try:
        return state(pid) == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def sessions_end(lab):
    import boto3

    ssm = boto3.client(
        "ssm", region_name=lab.variables["AWS_REGION"], endpoint_url=lab.api,
        aws_access_key_id=lab.variables["AWS_ACCESS_KEY_ID"], aws_secret_access_key=lab.variables["AWS_SECRET_ACCESS_KEY"],
    )
    active = lambda: {session["SessionId"] for session in ssm.describe_sessions(State="Active")["Sessions"]}
    before = active()
    command = lab.run("--", "sh", "-c", "echo $SSM_FORWARD_PORT; cat", more={})
    port = int(command.line())
    command.finish().ok()
    equal(active() - before, set())
    with_port = subprocess.run([sys.executable, "-c", ASK, "127.0.0.1", str(port)], capture_output=True, text=True)
    contains(with_port.stderr, "ConnectionRefusedError")


def ignored(lab):
    """Ignores SIGHUP, as nohup does."""
    look = "grep SigIgn /proc/self/status"
    arguments = [harness.binary(), "run", TARGET, "-L", f"0:127.0.0.1:{lab.port}", "--", *look.split()]
    quoted = " ".join(map(str, arguments))
    ended = harness.run(["sh", "-c", f"trap '' HUP; {quoted}"], env=clean_environment(lab.variables))
    assert int(ended.ok().split()[1], 16) & 1, ended.stdout
    assert not int(lab.run("--", *look.split()).finish().ok().split()[1], 16) & 1


def terminal(lab):
    script = (
        "import os, signal, sys, time\n"
        "say = lambda *words: os.write(1, (' '.join(map(str, words)) + chr(10)).encode())\n"
        "signal.signal(signal.SIGWINCH, lambda *_: say('size', *os.get_terminal_size()))\n"
        "signal.signal(signal.SIGCONT, lambda *_: say('goes on'))\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(23))\n"
        "say('group', os.getpgrp() == os.tcgetpgrp(0))\n"
        "while True: time.sleep(600)\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(script)
        file.flush()
        line = f"{harness.binary()} run {TARGET} -L 0:127.0.0.1:{lab.port} -- {sys.executable} {file.name}"
        with Terminal(["bash", "--norc", "--noprofile", "-i"], clean_environment({**lab.variables, "PS1": "prompt> "})) as person:
            person.expect("prompt> ")
            person.enter(line)
            person.expect("group True")
            person.resize(30, 100)
            person.expect("size 100 30")
            person.type(CTRL_Z)
            person.expect("Stopped")
            person.expect("prompt> ")
            # The whole job is stopped, not only the command.
            person.enter("jobs -l; ps -o stat= -p $(jobs -p)")
            person.expect(r"\n\s*T")
            person.expect("prompt> ")
            person.enter("fg")
            person.expect("goes on")
            person.resize(31, 90)
            person.expect("size 90 31")
            person.type(CTRL_C)
            person.expect("prompt> ")
            person.enter('echo "code: $?"')
            person.expect("code: 23")
            person.enter("exit")
            person.ended()


def own_shell(lab):
    environment = clean_environment({**lab.variables, "PS1": "outer> ", "SHELL": "/bin/bash"})
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / ".bashrc").write_text("PS1='inner> '\n")
        environment["HOME"] = home
        with Terminal(["bash", "--norc", "--noprofile", "-i"], environment) as person:
            person.expect("outer> ")
            person.enter(f"{harness.binary()} run {TARGET} -L 0:127.0.0.1:{lab.port}")
            person.expect("inner> ")
            # Ctrl-C ends only the job of the inner shell.
            asleep = "sh -c 'echo asleep$((0)); exec sleep 600'"
            person.enter(asleep)
            person.expect("asleep0")
            person.type(CTRL_C)
            person.expect("inner> ")
            person.enter(asleep)
            person.expect("asleep0")
            person.type(CTRL_Z)
            person.expect("Stopped")
            person.expect("inner> ")
            person.enter("kill %1; wait; suspend")
            person.expect("outer> ")
            person.enter("fg")
            person.enter("echo port=$SSM_FORWARD_PORT")
            person.expect(r"port=\d+")
            person.enter("exit 3")
            person.expect("outer> ")
            person.enter('echo "code: $?"')
            person.expect("code: 3")
            person.enter("exit")
            person.ended()


NAMES = """
import socket, sys
for name in ("one.example", "two.example"):
    address = socket.gethostbyname(name)
    with socket.create_connection((name, int(sys.argv[1])), 30) as stream:
        stream.sendall(b"word")
        print(name, address, stream.makefile("rb").read(4).decode(), flush=True)
"""


def named(lab):
    return [f"0:one.example:{lab.port}", f"0:two.example:{lab.port}"]


def real_names(lab):
    before = Path("/etc/hosts").read_bytes()
    said = lab.run("--real-names", "--", sys.executable, "-c", NAMES, str(lab.port), to=named(lab)).finish().ok()
    (one, first, _), (two, second, _) = both = [line.split() for line in said.splitlines()]
    assert first != second and first.startswith("127.") and "127.0.0.1" not in (first, second), both
    equal((one, two, [line[2] for line in both]), ("one.example", "two.example", ["WORD", "WORD"]))
    equal(Path("/etc/hosts").read_bytes(), before)
    ended = lab.run("--real-names", "--", "true", to=[f"0:127.0.0.1:{lab.port}"]).finish()
    equal(ended.code, 2)
    contains(ended.stderr, "an address is not a name")
    equal(lab.run("--real-names", "--", "sh", "-c", "echo $SSM_FORWARD_ADDR", to=named(lab)[:1]).finish().ok(), f"one.example:{lab.port}")


class AsNobody:
    """The command for a user without permissions, in a folder that this user owns."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="tests-run-")
        self.path = Path(self.folder.name)
        self.path.chmod(0o755)
        self.binary = self.path / "aws-ssm-forward"
        shutil.copyfile(harness.binary(), self.binary)
        self.binary.chmod(0o755)
        self.own = self.path / "own"
        self.own.mkdir()
        if os.geteuid() == 0:
            os.chown(self.own, NOBODY, NOBODY)
        return self

    def __exit__(self, *_):
        self.folder.cleanup()

    def command(self, lab, *arguments, before=()):
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
        forwards = [word for spec in named(lab) for word in ("-L", spec)]
        environment = clean_environment({**lab.variables, "HOME": str(self.own), "TMPDIR": str(self.own)})
        arguments = [*before, *user, self.binary, "run", TARGET, *forwards, "--real-names", *arguments]
        return harness.Child(arguments, env=environment)


def real_names_of_a_user(lab):
    with AsNobody() as nobody:
        mark = nobody.own / "written"
        script = f"id -u; touch {mark}; stat -c '%u' {mark}; getent hosts one.example two.example; grep CapEff /proc/self/status"
        number, owner, one, two, capabilities = nobody.command(lab, "--", "sh", "-c", script).finish().ok().splitlines()
        mine = str(NOBODY if os.geteuid() == 0 else os.geteuid())
        equal((number, owner, str(mark.stat().st_uid)), (mine, mine, mine))
        assert one.startswith("127.") and two.startswith("127.") and one.split()[0] != two.split()[0], (one, two)
        equal(int(capabilities.split()[1], 16), 0)
        # No file is left in the folder for temporary files.
        equal([file.name for file in nobody.own.iterdir()], ["written"])


def real_names_killed(lab):
    with AsNobody() as nobody:
        command = nobody.command(lab, "--", "sh", "-c", "echo $$; exec sleep 600")
        pid = int(command.line())
        command.process.kill()
        wait_until("the command to end", lambda: has_ended(pid))
        command.finish()


def no_namespaces(lab):
    """A user namespace in which no further one can be created simulates a system that does not allow namespaces."""
    with AsNobody() as nobody:
        forbid = "echo 0 >/proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin \"$@\""
        within = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", forbid, "sh"]
        forwards = [word for spec in named(lab) for word in ("-L", spec)]
        arguments = [*within, nobody.binary, "run", TARGET, *forwards, "--real-names", "--", "true"]
        ended = harness.run(arguments, env=clean_environment(lab.variables))
        equal(ended.code, 4)
        contains(ended.stderr, "--real-names", "user.max_user_namespaces", "{host}")
        equal(len(ended.stderr.splitlines()), 1)
