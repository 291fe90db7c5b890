"""Third-party tools that start a session-manager-plugin: Ansible, aws-ssm-tools, aws-ssm-juggle. Each tool uses
`aws-ssm-forward` as the plugin, and `aws-ssm-forward local` instead of AWS."""

import contextlib
import json
import random
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aws_api import client
from database import free_port
from harness import SEARCH_PATH, TARGET, Child, Manager, Tool, binary, clean_environment, contains, equal, run, wait_until
from services import Upper, asked
from terminal import Terminal

# Programs that pip installed are beside this Python.
BESIDE = Path(sys.executable).parent
PROGRAMS = ["ansible-playbook", "ec2-session", "ecs-session", "ec2-juggle", "ecs-juggle", "moto_server"]
NEEDS = ["boto3", "aws", *PROGRAMS, "curl", "setsid"]

CLUSTER, TASK, CONTAINER = "lab", "0123456789abcdef0123456789abcdef", "app"
BUCKET = "files"
FILE_BYTES = 300_000
# Time in which the node is not connected, in seconds.
REBOOT = "4s"


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-callers-") as name, contextlib.ExitStack() as stack:
        plugins = Path(name)
        run([binary(), "plugin", "install", "--dir", plugins], env=clean_environment()).ok()
        cloud = stack.enter_context(Cloud())
        containers = ["--ecs-task", f"{CLUSTER}/web/{TASK}/{CONTAINER}"]
        caller = Caller(stack.enter_context(Manager(*containers)), cloud, plugins)
        # This check reboots its node.
        other = Caller(stack.enter_context(Manager()), cloud, plugins)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda each: suite.check(*each), all_checks(caller, other)))
        suite.check("all sessions have ended", caller.has_ended)


def all_checks(caller, other):
    return [
        ("Ansible: the node reboots under a playbook and under a tunnel", ansible_reboot, other),
        ("Ansible: a line, a command, a file each way", ansible, caller),
        ("aws-ssm-tools: the nodes", tools_list, caller),
        ("aws-ssm-tools: a command on a node", tools_command, caller),
        ("aws-ssm-tools: a command in a container that it finds by name", tools_container, caller),
        ("aws-ssm-juggle: a command without a terminal", juggle_command, caller),
        ("aws-ssm-juggle: a port of a node", juggle_port, caller, "ec2-juggle", "--instance-id", TARGET),
        ("aws-ssm-juggle: a port of a container", juggle_port, caller, "ecs-juggle", *container()),
        ("aws-ssm-juggle: a shell in a container", juggle_shell, caller),
    ]


class Cloud(Child):
    """Services that the local Session Manager does not have: S3 for Ansible's files, EC2 for the names of nodes."""

    def __init__(self):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__([BESIDE / "moto_server", "-H", "127.0.0.1", "-p", self.port], env=clean_environment())
        wait_until("moto to listen", lambda: "Running on" in self.stderr)
        run([BESIDE / "aws", "s3api", "create-bucket", "--bucket", BUCKET], env=clean_environment(self.variables())).ok()

    def variables(self):
        urls = {f"AWS_ENDPOINT_URL_{service}": self.url for service in ("S3", "EC2")}
        return {**urls, "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_REGION": "us-east-1"}


class Caller:
    """The environment of the tools."""

    def __init__(self, manager, cloud, plugins):
        self.variables = manager.variables
        self.cloud, self.plugins = cloud, plugins
        path = f"{plugins}:{BESIDE}:{SEARCH_PATH}"
        # Without a profile, aws-ssm-juggle passes the profile `default`.
        config = plugins / "config"
        config.write_text("[default]\n")
        more = {"PATH": path, "AWS_CONFIG_FILE": str(config), "AWS_PAGER": "", "TERM": "xterm"}
        self.environment = clean_environment({**cloud.variables(), **manager.variables, **more})
        self.api = client(manager.variables)

    def run(self, program, *arguments, more=None, **options):
        return run([BESIDE / program, *arguments], env={**self.environment, **(more or {})}, limit=120, **options)

    def terminal(self, program, *arguments):
        return Terminal([BESIDE / program, *arguments], self.environment)

    def active(self):
        return [session["SessionId"] for session in self.api.describe_sessions(State="Active")["Sessions"]]

    def has_ended(self):
        wait_until("the last session to end", lambda: not self.active(), 10)

    def play(self, tasks):
        """Runs a playbook in its own folder and returns the output."""
        with tempfile.TemporaryDirectory(prefix="tests-ansible-") as name:
            folder = Path(name)
            playbook = [{"hosts": "all", "gather_facts": False, "tasks": tasks(folder)}]
            # JSON is also valid YAML.
            (folder / "play.yml").write_text(json.dumps(playbook))
            inventory = {"all": {"hosts": {"node": {"ansible_host": TARGET}}, "vars": self.connection(folder)}}
            (folder / "inventory.yml").write_text(json.dumps(inventory))
            more = {"ANSIBLE_LOCAL_TEMP": str(folder / "local"), "ANSIBLE_NOCOLOR": "1"}
            return self.run("ansible-playbook", "-v", "-i", folder / "inventory.yml", folder / "play.yml", more=more)

    def connection(self, folder):
        return {
            "ansible_connection": "amazon.aws.aws_ssm",
            "ansible_aws_ssm_plugin": str(self.plugins / "session-manager-plugin"),
            "ansible_aws_ssm_region": self.variables["AWS_REGION"],
            "ansible_aws_ssm_bucket_name": BUCKET,
            "ansible_aws_ssm_bucket_endpoint_url": self.cloud.url,
            "ansible_aws_ssm_s3_addressing_style": "path",
            "ansible_python_interpreter": sys.executable,
            "ansible_remote_tmp": str(folder / "remote"),
        }


def played(ended):
    assert ended.code == 0, f"exit code {ended.code}: {ended.stdout}\n{ended.stderr}"
    return ended.stdout


def ansible(caller):
    def tasks(folder):
        (folder / "sent").write_bytes(random.Random(5).randbytes(FILE_BYTES))
        sent, received, back = (str(folder / name) for name in ("sent", "received", "back"))
        return [
            {"ansible.builtin.raw": "echo ra''w $((6 * 7))", "register": "line"},
            {"ansible.builtin.assert": {"that": "'raw 42' in line.stdout"}},
            {
                "ansible.builtin.command": "sh -c 'echo out; echo err >&2; exit 3'",
                "register": "command",
                "failed_when": "(command.rc, command.stdout, command.stderr) != (3, 'out', 'err')",
            },
            {"ansible.builtin.copy": {"src": sent, "dest": received}},
            {"ansible.builtin.fetch": {"src": received, "dest": back, "flat": True}},
            {"ansible.builtin.command": f"cmp {sent} {back}", "delegate_to": "localhost", "vars": {"ansible_connection": "local"}},
        ]

    contains(played(caller.play(tasks)), "failed=0")


def ansible_reboot(caller):
    """A node reboots during a playbook. A tunnel to the node continues when the node is connected again.

    Ansible's module `reboot` cannot be used, because its connection ignores the end of a session."""

    def tasks(folder):
        reboot = folder / "reboot"
        reboot.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nsys.dont_write_bytecode = True\n"
            f"import signed\nsigned.control({caller.variables!r}, 'reboot', 'for={REBOOT}')\nopen({str(folder / 'down')!r}, 'x')\n"
        )
        reboot.chmod(0o700)
        return [
            # Like shutdown, this process outlives the session in which it was started.
            {"ansible.builtin.raw": f"(setsid {reboot} >/dev/null 2>&1 </dev/null &)"},
            {"ansible.builtin.wait_for": {"path": str(folder / "down")}, "delegate_to": "localhost", "vars": {"ansible_connection": "local"}},
            {"ansible.builtin.wait_for_connection": {"timeout": 60, "sleep": 1, "connect_timeout": 5}},
            {"ansible.builtin.raw": "echo ba''ck"},
        ]

    with Upper() as service:
        arguments = ["forward", "--target", TARGET, "-o", "json", "-L", f"0:127.0.0.1:{service.port}"]
        with Tool(*arguments, env=caller.variables) as tunnel:
            port = tunnel.event("ready")["port"]
            equal(asked(port, b"before"), b"BEFORE")
            contains(played(caller.play(tasks)), "failed=0", "back")
            tunnel.event("session_lost")
            # A session that was lost while unused is replaced when the next connection arrives.
            equal(asked(port, b"after"), b"AFTER")
            tunnel.event("restarted")
            tunnel.stop().ok()


def tools_list(caller):
    contains(caller.run("ec2-session", "--list").ok(), TARGET, "local")


def tools_command(caller):
    with caller.terminal("ec2-session", TARGET, "--command", "echo bytools") as terminal:
        terminal.expect("bytools\r\n")
        equal(terminal.ended(), 0)


def tools_container(caller):
    contains(caller.run("ecs-session", "--list").ok(), CLUSTER, TASK, CONTAINER, "127.0.0.1")
    with caller.terminal("ecs-session", CONTAINER, "--command", "echo in the container") as terminal:
        terminal.expect("in the container\r\n")
        equal(terminal.ended(), 0)


def region(caller):
    return ["--region", caller.variables["AWS_REGION"]]


def juggle_command(caller):
    document = ["--document", "AWS-StartNonInteractiveCommand", "--parameters", '{"command": ["echo by juggle"]}']
    ended = caller.run("ec2-juggle", *region(caller), "--instance-id", TARGET, "start", *document)
    contains(ended.ok(), "by juggle\n")


def juggle_port(caller, program, *which):
    local = free_port()
    with Upper() as service:
        arguments = [*region(caller), *which, "forward", "--remote-port", service.port, "--local-port", local]
        with Child([BESIDE / program, *arguments], env=caller.environment) as juggle:
            wait_until("the port to be open", lambda: "Waiting for connections" in juggle.line())
            equal(asked(local, b"by juggle"), b"BY JUGGLE")
            # juggle ignores the keyboard's signals and leaves them to the plugin, so it is killed. The plugin detects this.
            juggle.stop(signal.SIGKILL)


def container():
    return ["--cluster", CLUSTER, "--service", "web", "--task", TASK, "--container", CONTAINER]


def juggle_shell(caller):
    with caller.terminal("ecs-juggle", *region(caller), *container(), "command", "--command", "sh") as terminal:
        terminal.expect("Starting session with SessionId: ")
        terminal.enter("echo in''side")
        terminal.expect("inside\r\n")
        terminal.enter("exit")
        equal(terminal.ended(), 0)
