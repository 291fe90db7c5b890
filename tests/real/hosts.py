"""`--hosts`: remote names that resolve to tunnels on the whole machine. A mount namespace with its own /etc/hosts is the machine."""

import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import harness
from harness import TARGET, Child, Manager, clean_environment, contains, equal, run, wait_until
from run_command import NAMES
from services import Upper
from terminal import CTRL_C, Terminal

NEEDS = ["root", "unshare", "nsenter", "setpriv", "sudo"]

NOBODY = 65534
ORIGINAL = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n# kept\n10.0.0.1 taken.example\n"
ONE, TWO, TAKEN = "one.example", "two.example", "taken.example"

# use_pty is the default of newer versions of sudo.
MAY = f"Defaults use_pty\n#{NOBODY} ALL=(root) NOPASSWD: ALL\n"
MAY_NOT = "Defaults use_pty\nroot ALL=(ALL) ALL\n"


def checks(suite):
    known = [word for name in (ONE, TWO, TAKEN) for word in ("--host", f"{name}=127.0.0.1")]
    with tempfile.TemporaryDirectory(prefix="tests-hosts-") as name, Upper() as upper, Manager(*known) as manager:
        with Machine(Path(name), manager, upper.port) as machine:
            suite.check("forward: the names resolve to the tunnels, and are removed at the end", forward, machine)
            suite.check("forward on a terminal: Ctrl-C", on_terminal, machine)
            suite.check("kill -9: the names are removed", killed, machine)
            suite.check("if the writer was killed too: the next run removes them", all_killed, machine)
            suite.check("a name with another entry is refused, and the file is unchanged", taken, machine)
            suite.check("up: tunnels on one port, each name with its tunnel", up, machine)
            suite.check("a user becomes root through sudo", through_sudo, machine)
            suite.check("a user's live view, with sudo", live, machine)
            suite.check("a user who may not become root gets an error", no_sudo, machine)


class Machine:
    def __init__(self, folder, manager, port):
        self.folder, self.port = folder, port
        folder.chmod(0o755)
        self.hosts, self.sudoers = folder / "hosts", folder / "sudoers"
        self.binary = folder / "aws-ssm-forward"
        shutil.copyfile(harness.binary(), self.binary)
        self.binary.chmod(0o755)
        self.runtime = folder / "runtime"
        self.runtime.mkdir(mode=0o700)
        self.configuration = folder / "config.toml"
        self.environment = clean_environment({**manager.variables, "HOME": str(folder), "XDG_RUNTIME_DIR": str(self.runtime)})

    def __enter__(self):
        self.hosts.write_text(ORIGINAL)
        self.sudoers.write_text(MAY)
        self.sudoers.chmod(0o440)
        mounts = f"mount --bind {self.hosts} /etc/hosts && mount --bind {self.sudoers} /etc/sudoers && echo done && exec sleep 3600"
        self.holder = Child(["unshare", "--mount", "sh", "-c", mounts], env=clean_environment())
        equal(self.holder.line(), "done")
        self.within = ["nsenter", f"--mount=/proc/{self.holder.process.pid}/ns/mnt", "--"]
        return self

    def __exit__(self, *_):
        self.holder.process.kill()
        self.holder.finish()

    def command(self, *arguments, user=False):
        become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if user else []
        return [*self.within, *become, self.binary, *arguments]

    def start(self, *arguments, user=False):
        return Child(self.command(*arguments, user=user), env=self.environment)

    def forwards(self, *names):
        specs = [word for name in names for word in ("-L", f"0:{name}:{self.port}")]
        return ["forward", TARGET, *specs, "--hosts"]

    def forward(self, *names, user=False):
        child = self.start(*self.forwards(*names), user=user)
        for _ in names:
            contains(child.line(), "Forwarding 127.")
        return child

    def asked(self):
        """Returns the answers that programs on this machine get from the services under their names."""
        said = run([*self.within, sys.executable, "-c", NAMES, str(self.port)], env=clean_environment()).ok()
        lines = [line.split() for line in said.splitlines()]
        equal([(name, answer) for name, _, answer in lines], [(ONE, "WORD"), (TWO, "WORD")])
        return [address for _, address, _ in lines]

    def is_as_before(self):
        return self.hosts.read_text() == ORIGINAL

    def gone(self):
        wait_until("the names to go", self.is_as_before)



def forward(machine):
    before = machine.hosts.stat()
    child = machine.forward(ONE, TWO)
    first, second = machine.asked()
    assert first != second and "127.0.0.1" not in (first, second), (first, second)
    text = machine.hosts.read_text()
    assert text.startswith(ORIGINAL), text
    contains(text, f"{first} {ONE}\n{second} {TWO}\n")
    child.stop().ok()
    # The names are removed before the command has ended: it waits for this.
    equal(machine.hosts.read_text(), ORIGINAL)
    after = machine.hosts.stat()
    equal((after.st_ino, after.st_mode, after.st_uid), (before.st_ino, before.st_mode, before.st_uid))
    ended = machine.start("forward", TARGET, "-L", f"0:127.0.0.1:{machine.port}", "--hosts").finish()
    equal(ended.code, 2)
    contains(ended.stderr, "--hosts", "an address is not a name")


def on_terminal(machine):
    with Terminal(machine.command(*machine.forwards(ONE)), {**machine.environment, "TERM": "xterm"}) as terminal:
        terminal.expect("Forwarding 127")
        contains(machine.hosts.read_text(), ONE)
        terminal.type(CTRL_C)
        equal(terminal.ended(), 0)
    assert machine.is_as_before()


def killed(machine):
    child = machine.forward(ONE)
    contains(machine.hosts.read_text(), ONE)
    child.process.kill()
    machine.gone()
    child.finish()


def all_killed(machine):
    child = machine.forward(ONE)
    writer = int(re.search(r"# begin aws-ssm-forward (\d+)", machine.hosts.read_text())[1])
    os.kill(writer, signal.SIGKILL)
    child.process.kill()
    child.finish()
    contains(machine.hosts.read_text(), ONE)
    child = machine.forward(TWO)
    text = machine.hosts.read_text()
    assert ONE not in text and TWO in text, text
    child.stop().ok()
    assert machine.is_as_before()


def taken(machine):
    ended = machine.start(*machine.forwards(ONE, TAKEN)).finish()
    equal(ended.code, 4)
    contains(ended.stderr, "error: --hosts: /etc/hosts: taken.example has the address 10.0.0.1 already")
    assert machine.is_as_before()


def up(machine):
    table = lambda name: f'[tunnels.{name}]\nremote = "{name}.example:{machine.port}"\n'  # noqa: E731
    machine.configuration.write_text(f'[defaults]\ntarget = "{TARGET}"\n' + table("one") + table("two"))
    # Without --hosts both tunnels would listen on 127.0.0.1, where the service listens.
    child = machine.start("up", "--config", machine.configuration, "-o", "json", "--hosts")
    seen = set()
    while seen != {"one", "two"}:
        event = json.loads(child.line())
        if event["event"] == "ready":
            seen.add(event["tunnel"])
    machine.asked()
    machine.configuration.write_text(f'[defaults]\ntarget = "{TARGET}"\n' + table("two"))
    contains(run([machine.binary, "reload"], env=machine.environment).ok(), "closed: one")
    wait_until("the name to go", lambda: ONE not in machine.hosts.read_text())
    contains(machine.hosts.read_text(), TWO)
    child.stop().ok()
    assert machine.is_as_before()


def through_sudo(machine):
    child = machine.forward(ONE, TWO, user=True)
    machine.asked()
    child.stop().ok()
    assert machine.is_as_before()
    child = machine.forward(ONE, user=True)
    child.process.kill()
    machine.gone()
    child.finish()


def live(machine):
    runtime = machine.folder / "user"
    runtime.mkdir(mode=0o700)
    os.chown(runtime, NOBODY, NOBODY)
    command = machine.command("up", "--config", machine.configuration, "--hosts", user=True)
    with Terminal(command, {**machine.environment, "XDG_RUNTIME_DIR": str(runtime), "TERM": "xterm"}, columns=140) as terminal:
        terminal.expect("ADDRESS")
        wait_until("the name", lambda: TWO in machine.hosts.read_text())
        terminal.type("q")
        equal(terminal.ended(), 0)
    assert machine.is_as_before()


def no_sudo(machine):
    machine.sudoers.write_text(MAY_NOT)
    ended = machine.start(*machine.forwards(ONE), user=True).finish()
    equal(ended.code, 4)
    contains(ended.stderr, "error: --hosts: sudo: ")
    equal(len(ended.stderr.splitlines()), 1)
    assert machine.is_as_before()
