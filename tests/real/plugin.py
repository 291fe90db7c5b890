"""The AWS CLI with `aws-ssm-forward` as its session-manager-plugin and with `aws-ssm-forward local`."""

import base64
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor

from aws_api import client
from harness import PATIENCE, SEARCH_PATH, TARGET, Child, Manager, also_end, aws_cli, binary, clean_environment, contains, equal, run, wait_until
from services import Upper, asked
from terminal import CTRL_C, CTRL_D, ENTER, Terminal

NEEDS = ["boto3", "aws", "setsid"]

PASTE_BYTES = 1_000_000
STREAM_BYTES = 3_000_000
# A host that only the node can resolve; see `--host`.
HIDDEN = "db.internal"
CLUSTER, TASK, CONTAINER = "lab", "0123456789abcdef0123456789abcdef", "app"
PROMPT = r"[$#] "


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-plugin-") as folder, contextlib.ExitStack() as stack:
        run([binary(), "plugin", "install", "--dir", folder], env=clean_environment()).ok()
        task = f"{CLUSTER}/web/{TASK}/{CONTAINER}"
        cli = Cli(stack.enter_context(Manager("--host", f"{HIDDEN}=127.0.0.1", "--ecs-task", task)), folder)
        secret = Cli(stack.enter_context(Manager("--kms-key", "alias/lab")), folder)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda each: suite.check(each[0], *each[1:]), all_checks(cli, secret)))
        suite.check("all sessions have ended", none_is_left, cli, secret)


def all_checks(cli, secret):
    return [
        ("a shell: prompt, UTF-8, Ctrl-C, window size, exit", shell, cli),
        (f"a shell: {PASTE_BYTES // 10**6} MB pasted arrive whole", paste, cli),
        ("a shell: ~. ends it", escape, cli),
        ("a shell: the AWS CLI is killed, and the terminal is as before", cli_killed, cli),
        ("a shell: terminated by another", shell_terminated, cli),
        ("a shell: what is piped in is run", piped_shell, cli),
        ("a shell that is encrypted with a KMS key", encrypted_shell, secret),
        ("a command at the terminal", interactive_command, cli),
        ("a command without a terminal: its output, merged", merged_command, cli),
        ("a command without a terminal: standard error apart", separate_command, cli),
        ("a command without a terminal: its exit code on demand", exit_code, cli),
        ("a command without a terminal, encrypted", separate_command, secret),
        ("a port of the node", node_port, cli),
        ("a port of a host that the node knows", remote_host, cli),
        ("a port: Ctrl-C ends it", port_interrupted, cli),
        ("a port: the AWS CLI is killed, in the background too", port_cli_killed, cli),
        (f"an SSH session: {STREAM_BYTES // 10**6} MB through standard input and output", ssh_stream, cli),
        ("ECS: a shell in a container", ecs_shell, cli),
        ("ECS: a command in a container", ecs_command, cli),
        ("no session: the AWS CLI's error, no plugin", no_target, cli),
    ]


class Cli:
    """The AWS CLI, with the plugin in a folder of its PATH."""

    def __init__(self, manager, folder):
        path = f"{folder}:{SEARCH_PATH}"
        self.environment = clean_environment({**manager.variables, "PATH": path, "AWS_PAGER": "", "TERM": "xterm"})
        self.api = client(manager.variables)

    @staticmethod
    def start_session(document=None, **parameters):
        arguments = ["ssm", "start-session", "--target", TARGET]
        if document:
            given = {name: [value] for name, value in parameters.items()}
            arguments += ["--document-name", document, "--parameters", json.dumps(given)]
        return arguments

    def run(self, *arguments, more=None, **options):
        return run([aws_cli(), *arguments], env={**self.environment, **(more or {})}, **options)

    def terminal(self, *arguments):
        return Terminal([aws_cli(), *arguments], self.environment)

    def active(self):
        """Returns the ids of the active sessions."""
        return {session["SessionId"] for session in self.api.describe_sessions(State="Active")["Sessions"]}


def shell(cli):
    with cli.terminal(*cli.start_session()) as terminal:
        session = begun(terminal)
        terminal.enter("echo gr''üße-日本-$((6 * 7))")
        terminal.expect("grüße-日本-42\r\n")
        # The program itself reports that it runs. Before it has the terminal, Ctrl-C would reach only the shell.
        terminal.enter("""sh -c 'echo asl""eep; exec sleep 100'""")
        terminal.expect("asleep\r\n")
        terminal.type(CTRL_C)
        terminal.expect(PROMPT, 20)
        terminal.enter("echo code=$?")
        terminal.expect("code=130\r\n")
        equal(size(terminal), ("24", "80"))
        terminal.resize(50, 132)
        wait_until("the far side to follow the window", lambda: size(terminal) == ("50", "132"), 10)
        terminal.enter("exit")
        terminal.expect(f"Exiting session with sessionId: {session}\\.")
        equal(terminal.ended(), 0)
        silent_about_versions(terminal.shown)
        assert session not in cli.active()


def begun(terminal):
    session = terminal.expect(r"Starting session with SessionId: (\S+)\r\n")[1]
    terminal.expect(PROMPT)
    return session


def size(terminal):
    terminal.enter("echo si''ze: $(stty size)")
    return terminal.expect(r"size: (\d+) (\d+)\r\n").groups()


def silent_about_versions(text):
    assert "outdated" not in text and "WARNING" not in text, text


def paste(cli):
    lines = base64.encodebytes(random.Random(2).randbytes(PASTE_BYTES * 3 // 4)).decode()[: PASTE_BYTES - 1] + "\n"
    with cli.terminal(*cli.start_session()) as terminal:
        begun(terminal)
        terminal.enter(f"echo go''es; head -c {len(lines)} | sha256sum")
        terminal.expect("goes\r\n")
        # The Enter key also sends CR.
        terminal.type(lines.replace("\n", ENTER))
        terminal.expect(hashlib.sha256(lines.encode()).hexdigest())
        terminal.enter("exit")
        equal(terminal.ended(), 0)


def escape(cli):
    with cli.terminal(*cli.start_session()) as terminal:
        session = begun(terminal)
        terminal.type("~.")
        equal(terminal.ended(), 0)
        wait_until("the session to be terminated", lambda: session not in cli.active(), 10)


def cli_killed(cli):
    with cli.terminal(*cli.start_session()) as terminal:
        session = begun(terminal)
        os.kill(terminal.program(), signal.SIGKILL)
        equal(terminal.ended(), 128 + signal.SIGKILL)
        wait_until("the session to be terminated", lambda: session not in cli.active(), 10)


def shell_terminated(cli):
    with cli.terminal(*cli.start_session()) as terminal:
        session = begun(terminal)
        cli.api.terminate_session(SessionId=session)
        equal(terminal.ended(), 0)


def piped_shell(cli):
    for typed in ("echo h''i; exit\n", "echo h''i\n"):
        with tempfile.TemporaryFile() as stdin:
            stdin.write(typed.encode())
            stdin.seek(0)
            ended = cli.run(*cli.start_session(), stdin=stdin)
        contains(ended.ok(), "\nhi\n", "Exiting session")
        silent_about_versions(ended.stderr)


def encrypted_shell(cli):
    with cli.terminal(*cli.start_session()) as terminal:
        terminal.expect("This session is encrypted using AWS KMS.")
        terminal.expect(PROMPT)
        terminal.enter("echo ope''n")
        terminal.expect("open\r\n")
        terminal.enter("exit")
        equal(terminal.ended(), 0)


def interactive_command(cli):
    command = "printf 'name: '; read name; echo hello $name; exit 3"
    with cli.terminal(*cli.start_session("AWS-StartInteractiveCommand", command=command)) as terminal:
        terminal.expect("name: ")
        terminal.enter("world")
        terminal.expect("hello world\r\n")
        equal(terminal.ended(), 0)


# The document runs a program, not a shell command line.
NOISY = "sh -c 'echo to stdout; echo to stderr >&2; exit 3'"


def merged_command(cli):
    ended = cli.run(*cli.start_session("AWS-StartNonInteractiveCommand", command=NOISY))
    contains(ended.ok(), "to stdout\n", "to stderr\n")
    silent_about_versions(ended.stderr)
    many = cli.run(*cli.start_session("AWS-StartNonInteractiveCommand", command="seq 100000")).ok()
    contains(many, "\n" + "".join(f"{number}\n" for number in range(1, 100_001)))


def separate_command(cli):
    session = cli.start_session("AWS-StartNonInteractiveCommand", command=NOISY, separateOutputStream="true")
    ended = cli.run(*session)
    contains(ended.ok(), "to stdout\n")
    assert "to stderr" not in ended.stdout, ended.stdout
    equal(ended.stderr.strip(), "to stderr")


def exit_code(cli):
    """The AWS CLI exits with its own code, and prints the plugin's."""
    session = cli.start_session("AWS-StartNonInteractiveCommand", command=NOISY, separateOutputStream="true")
    ended = cli.run(*session, more={"AWS_SSM_FORWARD_EXIT_CODE": "remote"})
    contains(ended.stderr, "returned non-zero exit status 3")
    equal(ended.code, 255)


def node_port(cli):
    forwards(cli, lambda port: cli.start_session("AWS-StartPortForwardingSession", portNumber=str(port)))


def remote_host(cli):
    document = "AWS-StartPortForwardingSessionToRemoteHost"
    forwards(cli, lambda port: cli.start_session(document, portNumber=str(port), host=HIDDEN))


def forwards(cli, session_to):
    with Upper() as service, cli.terminal(*session_to(service.port)) as terminal:
        port, session = opened(terminal)
        sent = base64.b64encode(random.Random(3).randbytes(750_000)).lower()
        with ThreadPoolExecutor(4) as pool:
            for answer in pool.map(lambda _: asked(port, sent), range(4)):
                equal(hashlib.sha256(answer).digest(), hashlib.sha256(sent.upper()).digest())
        cli.api.terminate_session(SessionId=session)
        equal(terminal.ended(), 0)


def opened(terminal):
    """The exact texts that users of the AWS CLI wait for."""
    port, session = terminal.expect(r"Port (\d+) opened for sessionId (\S+)\.\r\n").groups()
    terminal.expect("Waiting for connections...\r\n")
    return int(port), session


def port_interrupted(cli):
    with Upper() as service:
        arguments = cli.start_session("AWS-StartPortForwardingSession", portNumber=str(service.port))
        with cli.terminal(*arguments) as terminal:
            port, session = opened(terminal)
            equal(asked(port, b"before"), b"BEFORE")
            terminal.type(CTRL_C)
            equal(terminal.ended(), 0)
            assert session not in cli.active()


def port_cli_killed(cli):
    """The AWS CLI is the plugin's caller, also in the background. If the CLI was killed, no other program ends the session."""
    for launcher in [[], ["nohup"], ["setsid"]]:
        with Upper() as service:
            arguments = cli.start_session("AWS-StartPortForwardingSession", portNumber=str(service.port))
            child = Child([*launcher, aws_cli(), *arguments], env=cli.environment)
            while not (line := child.line()).startswith("Starting session with SessionId: "):
                pass
            session = line.rpartition(" ")[2]
            while child.line() != "Waiting for connections...":
                pass
            child.process.kill()
            wait_until("the session to be terminated", lambda: session not in cli.active(), 10)


def ssh_stream(cli):
    """The service waits for the end of its input, which cannot be transmitted. The plugin must neither wait forever nor
    report success, because more data could have followed. All received data must be written."""
    sent = random.Random(4).randbytes(STREAM_BYTES)
    with Upper() as service:
        process = subprocess.Popen(
            [aws_cli(), *cli.start_session("AWS-StartSSHSession", portNumber=str(service.port))],
            env=cli.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        also_end(process)
        stdout, stderr = process.communicate(sent, timeout=PATIENCE)
    equal(process.returncode, 255)
    contains(stderr, b"the destination sent nothing for 30 s after the end of the input")
    greeting, _, stdout = stdout.partition(b"\nStarting session with SessionId: ")[2].partition(b"\n")
    contains(greeting, b"local-")
    equal((len(stdout), hashlib.sha256(stdout).digest()), (len(sent), hashlib.sha256(sent.upper()).digest()))


ECS = ["ecs", "execute-command", "--cluster", CLUSTER, "--task", TASK, "--container", CONTAINER, "--interactive", "--command"]


def ecs_shell(cli):
    with cli.terminal(*ECS, "sh") as terminal:
        terminal.expect(r"Starting session with SessionId: (\S+)\r\n")
        terminal.enter("echo in the cont''ainer")
        terminal.expect("in the container\r\n")
        terminal.type(CTRL_D)
        equal(terminal.ended(), 0)


def ecs_command(cli):
    with cli.terminal(*ECS, "echo done here") as terminal:
        terminal.expect("done here\r\n")
        equal(terminal.ended(), 0)


def no_target(cli):
    ended = cli.run("ssm", "start-session", "--target", "i-00000000000000bad")
    contains(ended.stderr, "TargetNotConnected")
    assert ended.code != 0
    equal(ended.stdout, "")


def none_is_left(*clis):
    for cli in clis:
        equal(cli.active(), set())
