"""Third-party clients, in Rust and in Python, with `aws-ssm-forward local`. These tests do not use this project's client."""

import contextlib
import hashlib
import random
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import PATIENCE, TARGET, Child, Manager, clean_environment, contains, equal, run, wait_until
from services import Upper, asked

NEEDS = ["bridge", "pyssm"]

FORWARDED_BYTES = 5_000_000
REQUESTS = 200


def checks(suite):
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(Manager()).variables
        encrypted = stack.enter_context(Manager("--kms-key", "alias/lab")).variables
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda each: suite.check(*each), all_checks(plain, encrypted)))


def all_checks(plain, encrypted):
    megabytes = FORWARDED_BYTES // 10**6
    return [
        ("aws-ssm-bridge (Rust): a shell", bridge_shell, plain, "false"),
        ("aws-ssm-bridge (Rust): a shell that is encrypted with a KMS key", bridge_shell, encrypted, "true"),
        (f"aws-ssm-bridge (Rust): {megabytes} MB each way through a port", bridge_forward, plain),
        ("pyssm-client (Python): a command in a shell, and its exit code", pyssm_exec, plain),
        (f"pyssm-client (Python): {REQUESTS} requests through a port", pyssm_forward, plain),
    ]


def bridge():
    """The path of the program that tests/real/bridge/build creates."""
    here = Path(__file__).resolve().parent
    return Path(subprocess.check_output([here / "bridge" / "build", "--path"], text=True).strip())


def pyssm():
    """The path of pyssm-client, beside this Python."""
    return Path(sys.executable).parent / "pyssm"


def bridge_shell(variables, encrypted):
    with Child([bridge(), "shell", TARGET], env=clean_environment(variables), stdin=subprocess.PIPE) as child:
        child.type("echo fo''und $(stty size); exit\r")
        child.process.stdin.close()
        ended = child.finish()
    # The shell's prompt may precede the output.
    contains(ended.ok(), "found 40 120")
    contains(ended.stderr, f"encrypted: {encrypted}")


def bridge_forward(variables):
    with Upper() as service:
        arguments = [bridge(), "forward", TARGET, service.port]
        with Child(arguments, env=clean_environment(variables), stdin=subprocess.PIPE) as child:
            sent = random.Random(8).randbytes(FORWARDED_BYTES)
            answer = asked(int(child.line()), sent)
            equal(hashlib.sha256(answer).digest(), hashlib.sha256(sent.upper()).digest())
            child.process.stdin.close()
            child.finish().ok()


def pyssm_exec(variables):
    command = [pyssm(), "exec", "--target", TARGET, "--command", "echo fo''und; exit 3"]
    # The client sends its command once, 0.1 s after it has connected, even if the session is not ready yet.
    def ended_in_time():
        with contextlib.suppress(AssertionError):
            return run(command, limit=15, env=clean_environment(variables))

    ended = wait_until("pyssm's command to reach the session", ended_in_time, limit=75)
    equal((ended.code, ended.stdout), (3, "found"))


def pyssm_forward(variables):
    with Upper() as service:
        arguments = [pyssm(), "port-forward", "--target", TARGET, "--remote-port", service.port]
        with Child(arguments, env=clean_environment(variables)) as child:
            listening = wait_until("pyssm to listen", lambda: re.search(r"on 127\.0\.0\.1:(\d+)", child.line()))
            with socket.create_connection(("127.0.0.1", int(listening[1])), timeout=PATIENCE) as stream:
                # One request after the other, because the client handles messages concurrently and reorders data in several messages.
                for number in range(REQUESTS):
                    request = f"request {number};".encode() * 50
                    stream.sendall(request)
                    equal(stream.makefile("rb").read(len(request)), request.upper())
