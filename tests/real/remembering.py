"""The cache of lookups on disk: which commands use it, which do not, and what happens when an entry is outdated."""

import contextlib
import os
import tempfile
from pathlib import Path

import completion
from account import Aws, Certificates, Greeter, Lab, Relay, greeting, run_tool, tunnel
from harness import Manager, Tool, clean_environment, contains, equal, wait_until
from signed import add_fault, control
from targets import FIRST, SECOND, last_target

NEEDS = ["boto3", "moto", "openssl", "bash", "zsh", "fish"]

NO_LOOK_UP = "api,operation=DescribeInstanceInformation,answer=forbidden"


def checks(suite):
    suite.check("a script makes one lookup within a minute; --refresh and ls make another one", asked_once)
    suite.check("one command makes one lookup, also with --refresh", no_needless_call)
    suite.check("another region, endpoint or account has its own cache", separate)
    suite.check("only the user can read the cache", private)
    suite.check("a node that no longer exists is looked up again", gone)
    suite.check("a cached name is used after a second node got the same name; --refresh reports both", second_node)
    suite.check("the next session uses the new endpoint of a database", failover)
    suite.check("bash, zsh and fish complete found names, without a call of the API", completed)


class Home:
    """A separate home directory, whose cache is empty at first."""

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="tests-remembering-")
        self.path = Path(self._folder.name)
        return self

    def __exit__(self, *_):
        self._folder.cleanup()

    def run(self, manager, *arguments, **more):
        return self.run_with(manager.variables, *arguments, **more)

    def run_with(self, variables, *arguments, **more):
        return Tool(*arguments, env={**variables, "HOME": str(self.path), **more}).finish()

    def files(self):
        return list((self.path / ".cache/aws-ssm-forward/lookups").iterdir())


def asked_once():
    with Home() as home, Manager("--node", f"{FIRST},Name=web") as manager:
        home.run(manager, "exec", "web", "--", "true").ok()
        home.run(manager, "exec", "tag:Name=web", "--", "true").ok()
        add_fault(manager.variables, NO_LOOK_UP)
        for target in ["web", "tag:Name=web"]:
            equal(home.run(manager, "exec", target, "--", "echo found").ok().strip(), "found")
        for arguments in [["exec", "web", "--refresh", "--", "true"], ["ls"]]:
            ended = home.run(manager, *arguments)
            equal(ended.code, 5)
            contains(ended.stderr, "DescribeInstanceInformation")


def no_needless_call():
    """Every second call is refused."""
    with Home() as home, Manager("--node", f"{FIRST},Name=web", "--fault", f"{NO_LOOK_UP},nth=2") as manager:
        home.run(manager, "exec", "tag:Name=web", "--refresh", "--", "true").ok()
        equal(home.run(manager, "exec", "tag:Name=web", "--refresh", "--", "true").code, 5)


def separate():
    with Home() as home, Manager("--node", f"{FIRST},Name=web") as manager:
        home.run(manager, "exec", "web", "--", "true").ok()
        add_fault(manager.variables, NO_LOOK_UP)
        home.run(manager, "exec", "web", "--", "true").ok()
        other = manager.variables["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost")
        for more in [{"AWS_REGION": "eu-west-3"}, {"AWS_ENDPOINT_URL": other}]:
            equal(home.run(manager, "exec", "web", "--", "true", **more).code, 5)
    options = ["--insecure-credentials", "any"]
    with Home() as home, Manager(*options, "--node", f"{FIRST},Name=web") as manager:
        home.run(manager, "exec", "web", "--", "true").ok()
        home.run(manager, "exec", "web", "--", "true", AWS_ACCESS_KEY_ID="AKIALOCALLOCALLOCAL9").ok()
        equal(len(home.files()), 2)


def private():
    with Home() as home, Manager("--node", f"{FIRST},Name=web") as manager:
        home.run(manager, "exec", "web", "--", "true").ok()
        [file] = home.files()
        equal((file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777), (0o600, 0o700))
        text = file.read_text()
        for name in ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"]:
            assert manager.variables.get(name, "none of these") not in text, name
        # A file that other users can write is not used.
        file.write_text(text.replace(FIRST, "i-0ee"))
        file.chmod(0o666)
        home.run(manager, "exec", "web", "--", "true").ok()
        equal((last_target(manager), file.stat().st_mode & 0o777), (FIRST, 0o600))


@contextlib.contextmanager
def two_managers(*nodes):
    """Two managers behind one address, which leads to the first one at first."""
    options = ["--insecure-credentials", "fixed"]
    with Relay() as relay, Manager(*options, *nodes[0]) as first, Manager(*options, *nodes[1]) as second:
        relay.to(first)
        yield relay, first, second, {**first.variables, "AWS_ENDPOINT_URL": relay.url}


def gone():
    with Home() as home, two_managers(["--node", f"{FIRST},Name=web"], ["--node", f"{SECOND},Name=web"]) as (relay, first, second, both):
        home.run_with(both, "exec", "web", "--", "true").ok()
        relay.to(second)
        equal(home.run_with(both, "exec", "web", "--", "echo found").ok().strip(), "found")
        equal(last_target(second), SECOND)


def second_node():
    nodes = ["--node", f"{FIRST},Name=web"], ["--node", f"{FIRST},Name=web", "--node", f"{SECOND},Name=web"]
    with Home() as home, two_managers(*nodes) as (relay, first, second, both):
        home.run_with(both, "exec", "web", "--", "true").ok()
        relay.to(second)
        home.run_with(both, "exec", "web", "--", "true").ok()
        ended = home.run_with(both, "exec", "web", "--refresh", "--", "true")
        equal(ended.code, 2)
        # The result that several nodes have the name is not cached.
        relay.to(first)
        home.run_with(both, "exec", "web", "--", "true").ok()


def failover():
    with tempfile.TemporaryDirectory(prefix="tests-failover-") as name, Aws() as aws:
        old, new = Greeter(b"old"), Greeter(b"new")
        move_database(aws, old.port)
        with Manager("--target", aws.node, *aws.hosts()) as manager:
            lab = Lab(aws, manager, Certificates(Path(name)))
            with tunnel(lab, "rds:example-db") as client:
                equal(greeting(client.port), b"old")
                move_database(aws, new.port)
                control(manager.variables, "end", "status=failed,text=The instance is gone.")
                wait_until("the new endpoint to answer", lambda: greeting(client.port) == b"new")
            # The endpoint is not cached for the next command either.
            move_database(aws, old.port)
            with tunnel(lab, "rds:example-db") as client:
                equal(greeting(client.port), b"old")


def move_database(aws, port):
    """Creates the database again, because moto cannot change the endpoint of an existing one."""
    rds = aws.client("rds")
    rds.delete_db_instance(DBInstanceIdentifier="example-db", SkipFinalSnapshot=True)
    rds.create_db_instance(
        DBInstanceIdentifier="example-db", DBInstanceClass="db.t4g.micro", Engine="mysql", AllocatedStorage=20, Port=port,
        MasterUsername="admin", MasterUserPassword="not-a-secret", DBSubnetGroupName="g",
    )


def completed():
    with Home() as home, tempfile.TemporaryDirectory(prefix="tests-completed-") as name, Aws() as aws:
        with Manager("--target", aws.node, "--node", f"{FIRST},Name=batch") as manager:
            lab = Lab(aws, manager, Certificates(Path(name)))
            lab.variables["HOME"] = str(home.path)
            run_tool(lab, "ls", "rds").ok()
            run_tool(lab, "exec", "batch", "--", "true").ok()
        (home.path / "bin").mkdir()
        (home.path / "bin/aws-ssm-forward").symlink_to(os.environ["AWS_SSM_FORWARD_BIN"])
        # This environment has no AWS settings, and no API is running.
        environment = clean_environment({"HOME": str(home.path), "PATH": f"{home.path}/bin:{clean_environment()['PATH']}"})
        for shell in [completion.bash, completion.zsh, completion.fish]:
            equal(shell(environment, "aws-ssm-forward shell bat"), ["batch"])
            equal(shell(environment, "aws-ssm-forward exec i-0a"), [FIRST])
        equal(completion.fish(environment, "aws-ssm-forward forward rds:ex"), ["rds:example-db"])
        equal(completion.zsh(environment, "aws-ssm-forward forward rds:ex"), ["rds:example-db"])
        # bash replaces only the text after the colon.
        equal(completion.bash(environment, "aws-ssm-forward forward rds:ex"), ["example-db"])
        equal(sorted(completion.fish(environment, "aws-ssm-forward token r")), ["rds:example-db", "rds:reports"])
