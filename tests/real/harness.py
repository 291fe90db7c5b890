"""The common part of the tests with real programs: checks, and child processes that end with the tests."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

# Time limit of a single step, in seconds. A step that takes longer has failed.
PATIENCE = 60

# Servers are in folders that only root's PATH contains.
SEARCH_PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"

TARGET = "i-0123456789abcdef0"

# The Python environment with the tools that check files for other programs. tests/real/venv creates it beside the current one.
CHECKS = Path(f"{sys.prefix}-checks")


class Skipped(Exception):
    """A check cannot run because this machine lacks something. The text names what is missing. In CI this is a failure."""


class Suite:
    """Checks that run one after the other; each prints a line."""

    def __init__(self, name):
        self.name = name
        self.passed = 0
        self.failed = 0
        self.skipped = 0

    def check(self, what, function, *args):
        began = time.monotonic()
        try:
            function(*args)
        except Skipped as lacking:
            verdict = "FAIL " if in_ci() else "skip "
            self.failed += in_ci()
            self.skipped += not in_ci()
            say(f"{verdict} {self.name}: {what}: {lacking}")
        except Exception as error:
            self.failed += 1
            say(f"FAIL  {self.name}: {what}: {error}\n{indent(traceback.format_exc())}")
        else:
            self.passed += 1
            say(f"ok    {self.name}: {what} ({time.monotonic() - began:.1f} s)")


def in_ci():
    return os.environ.get("CI") == "true"


def say(text):
    """Suites run in parallel, so each line is printed with one write."""
    with _printing:
        print(text, flush=True)


def indent(text):
    return "\n".join(f"        {line}" for line in text.rstrip().splitlines())


def equal(got, wanted):
    assert got == wanted, f"got {got!r}, wanted {wanted!r}"


def contains(text, *parts):
    for part in parts:
        assert part in text, f"no {part!r} in {text!r}"


def wait_until(what, condition, limit=PATIENCE):
    """Repeats the call until its result is true, and returns the result."""
    deadline = time.monotonic() + limit
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {limit} s for: {what}"
        time.sleep(0.05)


def run(args, limit=PATIENCE, **options):
    """Runs a program to its end and returns it with its output as text; the caller checks the exit code."""
    child = Child(args, **options)
    return child.finish(limit)


class Child:
    """A process whose output is read as it arrives. It is killed at the latest when the tests end."""

    def __init__(self, args, stdin=subprocess.DEVNULL, env=None, user=None, process_group=None):
        self.args = [str(arg) for arg in args]
        self.process = subprocess.Popen(
            self.args,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            user=user,
            process_group=process_group,
            text=True,
            bufsize=1,
        )
        _children.append(self.process)
        self._lines = queue.Queue()
        self._errors = []
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._lines.put), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self._errors.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream, take):
        for line in stream:
            take(line.rstrip("\n"))

    @property
    def stderr(self):
        return "\n".join(self._errors)

    def line(self, limit=PATIENCE):
        """Waits for the next line of stdout and returns it."""
        try:
            return self._lines.get(timeout=limit)
        except queue.Empty:
            raise AssertionError(f"{self.args[0]}: no line within {limit} s; stderr: {self.stderr}") from None

    def lines_so_far(self, quiet=0.5):
        """Returns the lines of stdout that arrive until none has arrived for `quiet` seconds."""
        lines = []
        try:
            while True:
                lines.append(self._lines.get(timeout=quiet))
        except queue.Empty:
            return lines

    def type(self, line):
        """Writes a line to stdin, which is a pipe."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def finish(self, limit=PATIENCE):
        """Waits until the process ends."""
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"{' '.join(self.args)}: not done within {limit} s; stderr: {self.stderr}") from None
        for reader in self._readers:
            reader.join(limit)
        return Ended(self.args, code, "\n".join(self._lines.queue), self.stderr)

    def stop(self, with_signal=signal.SIGTERM, limit=PATIENCE):
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        return self.finish(limit)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Ended:
    """The output and the exit code of a process that has ended."""

    def __init__(self, args, code, stdout, stderr):
        self.args = args
        self.code = code
        self.stdout = stdout
        self.stderr = stderr

    def ok(self):
        assert self.code == 0, f"{' '.join(self.args)}: exit code {self.code}; stderr: {self.stderr}"
        return self.stdout


class Tool(Child):
    """The command under test, with its own environment."""

    def __init__(self, *args, env=None):
        super().__init__([binary(), *args], env=clean_environment(env))

    def event(self, name, limit=PATIENCE):
        """Waits for the next JSON event of this name and returns it. Skips other events."""
        while True:
            event = json.loads(self.line(limit))
            if event["event"] == name:
                return event
            assert event["event"] != "error", event


class Manager(Tool):
    """`aws-ssm-forward local`, with the environment variables for its clients."""

    def __init__(self, *args):
        super().__init__("local", *args)
        wait_until("the local Session Manager", lambda: "Ctrl-C" in self.stderr)
        self.variables = dict(line.removeprefix("export ").split("=", 1) for line in self.lines_so_far())


def clean_environment(more=None):
    return {
        "PATH": SEARCH_PATH,
        "HOME": os.environ["TESTS_HOME"],
        "LC_ALL": "C.UTF-8",
        "AWS_EC2_METADATA_DISABLED": "true",
        **(more or {}),
    }


def binary():
    return Path(os.environ["AWS_SSM_FORWARD_BIN"])


def packages():
    """The folder with the packages that packaging/build creates."""
    return binary().parents[1] / "packages"


def aws_cli():
    """The path of the AWS CLI: beside this Python, otherwise in PATH."""
    beside = Path(sys.executable).parent
    return shutil.which("aws", path=f"{beside}:{SEARCH_PATH}")


def reraise(error):
    raise error


def also_end(process):
    """Ensures that a process is killed at the latest when the tests end."""
    _children.append(process)


def end_all_children():
    for process in _children:
        if process.poll() is None:
            process.kill()
            process.wait()


_printing = threading.Lock()
_children = []
