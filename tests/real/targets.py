"""Ambiguous names of nodes: the prompt in a real terminal, errors, replacement of instances."""

import os

from account import Greeter, Relay, greeting
from harness import Manager, Tool, binary, clean_environment, contains, equal, wait_until
from terminal import CTRL_C, ENTER, Terminal

NEEDS = ["boto3"]

FIRST, SECOND, AWAY = "i-0aa", "i-0bb", "i-0cc"
WORKER = "Name=worker,aws:autoscaling:groupName=workers"
NODES = ["--node", f"{FIRST},Name=web,Env=test", "--node", f"{SECOND},Name=web,Env=prod", "--node", f"{AWAY},Name=away,offline"]


def checks(suite):
    with Manager(*NODES) as manager:
        suite.check("a user chooses one of several nodes by typing a part of its id", picked, manager)
        suite.check("a user chooses no node", none_picked, manager)
        suite.check("without a terminal, several nodes are an error that lists them", ambiguous, manager)
        suite.check("--any chooses one, always the same", any_node, manager)
        suite.check("a node must have all of several tags", tags, manager)
        suite.check("an offline node is reported, with the time", offline, manager)
        suite.check("a node that does not exist is reported, with region and profile", absent, manager)
    suite.check("a throttled lookup: call, region and profile", refused, "throttled", ["ThrottlingException", "later"])
    suite.check("a denied lookup: call, region, profile and permission", refused, "forbidden", ["ssm:DescribeInstanceInformation"])
    suite.check("an API that cannot be reached: call, region and profile", unreachable)
    suite.check("--any survives the replacement of its instance", replaced, ["worker", "--any"])
    suite.check("asg: survives the replacement of its instance", replaced, ["asg:workers"])


def picked(manager):
    with Terminal([binary(), "exec", "web", "--", "echo done"], env=clean_environment(manager.variables), columns=120) as terminal:
        terminal.expect("web names 2 managed nodes")
        # Id, name, address, agent and connection of each node.
        terminal.expect(rf"{FIRST} \(web, 127\.0\.0\.1\), agent [0-9.]+, online")
        terminal.expect(SECOND)
        terminal.type("0bb")
        terminal.expect("0bb")
        terminal.type(ENTER)
        terminal.expect("done")
        equal(terminal.ended(), 0)
    equal(last_target(manager), SECOND)


def none_picked(manager):
    with Terminal([binary(), "shell", "web"], env=clean_environment(manager.variables), columns=120) as terminal:
        terminal.expect("web names 2 managed nodes")
        terminal.type(CTRL_C)
        equal(terminal.ended(), 130)


def ambiguous(manager):
    ended = with_profile(manager, "exec", "web", "--", "true")
    equal(ended.code, 2)
    equal(len(ended.stderr.splitlines()), 1)
    contains(ended.stderr, FIRST, SECOND, "web", "127.0.0.1", "agent 3.", "online", "eu-west-3", 'profile "staging"', "--any")


def any_node(manager):
    for _ in range(2):
        tool(manager, "exec", "web", "--any", "--", "true").ok()
        equal(last_target(manager), FIRST)


def tags(manager):
    tool(manager, "exec", "tag:Name=web,Env=prod", "--", "true").ok()
    equal(last_target(manager), SECOND)
    equal(tool(manager, "exec", "tag:Name=web,Env=none", "--", "true").code, 5)


def offline(manager):
    ended = with_profile(manager, "exec", "away", "--", "true")
    equal((ended.code, len(ended.stderr.splitlines())), (5, 1))
    contains(ended.stderr, 'no managed node that "away" names is online', AWAY, "offline since 20", "eu-west-3", 'profile "staging"')


def absent(manager):
    ended = with_profile(manager, "exec", "nobody", "--", "true")
    equal((ended.code, len(ended.stderr.splitlines())), (5, 1))
    contains(ended.stderr, 'no managed node is named "nobody" in eu-west-3 (profile "staging")')
    ended = with_profile(manager, "exec", "tag:Role=none", "--", "true")
    contains(ended.stderr, 'no managed node is named "tag:Role=none" in eu-west-3')


def refused(answer, parts):
    with Manager("--fault", f"api,operation=DescribeInstanceInformation,answer={answer}") as manager:
        ended = with_profile(manager, "exec", "web", "--", "true")
    equal((ended.code, len(ended.stderr.splitlines())), (5, 1))
    contains(ended.stderr, "DescribeInstanceInformation", "eu-west-3", 'profile "staging"', *parts)


def unreachable():
    with Manager() as manager:
        manager.variables["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"
        ended = with_profile(manager, "exec", "web", "--", "true")
    equal((ended.code, len(ended.stderr.splitlines())), (5, 1))
    contains(ended.stderr, "cannot reach http://127.0.0.1:1 for DescribeInstanceInformation", 'region: eu-west-3 (profile "staging")')


def replaced(target):
    """The API's address does not change. Behind it, first one node has the name, then another one."""
    options = ["--insecure-credentials", "fixed"]
    with Relay() as relay, Manager(*options, "--node", f"{SECOND},{WORKER}") as second:
        with Manager(*options, "--node", f"{FIRST},{WORKER}") as first:
            relay.to(first)
            variables = {**first.variables, "AWS_ENDPOINT_URL": relay.url}
            server = Greeter()
            tunnel = Tool("forward", *target, "-L", f"0:127.0.0.1:{server.port}", "-o", "json", env=variables)
            port = tunnel.event("ready")["port"]
            equal(greeting(port), b"hello")
            relay.to(second)
        with tunnel:
            tunnel.event("session_lost")
            wait_until("a connection through the new instance", lambda: greeting(port) == b"hello")
            equal(last_target(second), SECOND)
            tunnel.stop().ok()


def tool(manager, *arguments):
    return Tool(*arguments, env=manager.variables).finish()


def with_profile(manager, *arguments):
    """Runs the command with the region and credentials of a profile."""
    path = os.path.join(os.environ["TESTS_HOME"], "targets-config")
    variables = manager.variables
    with open(path, "w") as file:
        file.write("[profile staging]\nregion = eu-west-3\n")
        file.write(f"aws_access_key_id = {variables['AWS_ACCESS_KEY_ID']}\n")
        file.write(f"aws_secret_access_key = {variables['AWS_SECRET_ACCESS_KEY']}\n")
    env = {"AWS_CONFIG_FILE": path, "AWS_ENDPOINT_URL": variables["AWS_ENDPOINT_URL"]}
    command, *rest = arguments
    return Tool(command, "--profile", "staging", *rest, env=env).finish()


def last_target(manager):
    """Returns the target of the newest session."""
    import boto3

    variables = manager.variables
    ssm = boto3.client(
        "ssm", region_name=variables["AWS_REGION"], endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"], aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )
    found = [session for state in ["Active", "History"] for session in ssm.describe_sessions(State=state)["Sessions"]]
    return max(found, key=lambda session: session["StartDate"])["Target"]
