"""The libraries' examples, run as described in their documentation."""

import contextlib
import os
import socket
import tempfile
from pathlib import Path

from harness import TARGET, Child, aws_cli, binary, clean_environment, contains, equal, run, wait_until

NEEDS = ["aws", "postgres"]

POSTGRES = Path("/usr/lib/postgresql")


def checks(suite):
    suite.check("ssm-proto decode: its own messages", decode)
    suite.check("ssm-proto custom_transport: a line is sent and returned", custom_transport)
    suite.check("ssm-forward loopback: a tunnel in one process", loopback)
    suite.check("ssm-forward custom_provider: each call is logged", custom_provider)
    suite.check("ssm-forward postgres_in_process: a query over a stream", postgres_in_process)
    suite.check("ssm-local embed_emulator: the AWS CLI as the program under test", embed_emulator)


def decode():
    contains(example("decode").ok(), "OutputStreamData", "InputStreamData", "HandshakeResponse")


def custom_transport():
    equal(example("custom_transport").ok(), "the agent answered: HELLO")


def loopback():
    contains(example("loopback").ok(), "through the tunnel at 127.0.0.1:", "hello from the private server")


def custom_provider():
    contains(example("custom_provider").ok(), "audit: alice started ", f" on {TARGET}", "audit: alice ends ")


def postgres_in_process():
    with tempfile.TemporaryDirectory(prefix="tests-examples-") as folder, postgres(Path(folder)) as port:
        equal(example("postgres_in_process", "127.0.0.1", port, "somebody").ok(), "the database says: somebody, 42")


def embed_emulator():
    output = example("embed_emulator", aws_cli(), "ssm", "describe-instance-information").ok()
    contains(output, TARGET)


def example(name, *args):
    return run([binary().parent / "examples" / name, *args], env=clean_environment())


@contextlib.contextmanager
def postgres(folder):
    """A server without passwords, which listens only on loopback."""
    folder.chmod(0o755)
    programs = max(POSTGRES.iterdir(), key=lambda version: int(version.name)) / "bin"
    data = folder / "data"
    data.mkdir()
    # PostgreSQL refuses to run as root.
    user = None
    if os.geteuid() == 0:
        user = "postgres"
        os.chown(data, *owner(user))
    command = [programs / "initdb", "-D", data, "-U", "somebody", "--auth", "trust", "--no-sync"]
    run(command, user=user).ok()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["-D", data, "-h", "127.0.0.1", "-p", str(port), "-c", "unix_socket_directories=", "-c", "fsync=off"]
    with Child([programs / "postgres", *arguments], user=user) as server:
        wait_until("PostgreSQL to start", lambda: "ready to accept" in server.stderr)
        yield port


def owner(user):
    import pwd

    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid
