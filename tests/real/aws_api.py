"""The AWS CLI and boto3 with `aws-ssm-forward local`, and with a tunnel through it."""

import json
import signal
import socket

from harness import TARGET, Manager, Tool, aws_cli, clean_environment, contains, equal, run

NEEDS = ["boto3", "aws"]

PORT_FORWARDING = "AWS-StartPortForwardingSessionToRemoteHost"
PARAMETERS = {"host": ["127.0.0.1"], "portNumber": ["3306"]}
NO_TARGET = "i-00000000000000bad"
NO_SESSION = "local-00000000000000000"


def checks(suite):
    with Manager() as manager:
        variables = manager.variables
        suite.check("what `local` prints is all that the AWS CLI needs", first_call, Cli(variables))
        variables.setdefault("AWS_DEFAULT_REGION", variables["AWS_REGION"])
        api, cli = client(variables), Cli(variables)
        suite.check("boto3: start, resume, describe, terminate", life_of_a_session, api)
        suite.check("boto3: the default document is a shell", default_document, api)
        suite.check("boto3: nodes by filter", nodes, api)
        suite.check("boto3: connection status", connection_status, api)
        suite.check("boto3: documents, page by page", documents, api)
        suite.check("boto3: each error has AWS's name", boto3_errors, api)
        suite.check("boto3: an unsigned call is refused", unsigned, variables)
        suite.check("aws: describe-instance-information --filters", cli_nodes, cli)
        suite.check("aws: get-connection-status of a node that does not exist", cli_connection_status, cli)
        suite.check("aws: get-document and describe-document", cli_documents, cli)
        suite.check("aws: describe, resume and terminate a session of boto3's", cli_sessions, cli, api)
        suite.check("aws: start-session without a plugin terminates its session", cli_start_session, cli)
        suite.check("aws: each error is shown by its name", cli_errors, cli)
        suite.check("aws: terminate-session ends a tunnel that may not restart", cli_ends_tunnel, cli, variables)
        suite.check("aws: after terminate-session a tunnel continues in a new session", cli_interrupts_tunnel, cli, variables)
        suite.check("SIGTERM ends the command with exit code 0", lambda: manager.stop(signal.SIGTERM).ok())


def first_call(cli):
    equal(cli.ask("get-connection-status", "--target", TARGET)["Status"], "connected")


def client(variables, **config):
    import boto3
    from botocore.config import Config

    session = boto3.session.Session(
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name=variables["AWS_REGION"],
    )
    config = Config(connect_timeout=10, read_timeout=30, retries={"max_attempts": 0}, **config)
    return session.client("ssm", endpoint_url=variables["AWS_ENDPOINT_URL"], config=config)


def start(api, reason="a test"):
    return api.start_session(Target=TARGET, DocumentName=PORT_FORWARDING, Parameters=PARAMETERS, Reason=reason)


def life_of_a_session(api):
    ticket = start(api, "a life")
    session = ticket["SessionId"]
    contains(ticket["StreamUrl"], "ws://127.0.0.1:", session)
    resumed = api.resume_session(SessionId=session)
    equal(resumed["SessionId"], session)
    assert resumed["TokenValue"] != ticket["TokenValue"], "the same token twice"
    mine = [{"key": "SessionId", "value": session}]
    [active] = api.describe_sessions(State="Active", Filters=mine)["Sessions"]
    told = {key: active[key] for key in ("Target", "DocumentName", "Reason", "Status")}
    equal(told, {"Target": TARGET, "DocumentName": PORT_FORWARDING, "Reason": "a life", "Status": "Connecting"})
    equal(api.terminate_session(SessionId=session)["SessionId"], session)
    equal(api.describe_sessions(State="Active", Filters=mine)["Sessions"], [])
    [ended] = api.describe_sessions(State="History", Filters=mine)["Sessions"]
    equal(ended["Status"], "Terminated")
    assert ended["StartDate"] <= ended["EndDate"]
    # A session that has ended cannot be resumed: the answer has no token.
    assert "TokenValue" not in api.resume_session(SessionId=session)


def default_document(api):
    session = api.start_session(Target=TARGET)["SessionId"]
    [found] = api.describe_sessions(State="Active", Filters=[{"key": "SessionId", "value": session}])["Sessions"]
    equal(found["DocumentName"], "SSM-SessionManagerRunShell")
    api.terminate_session(SessionId=session)


def nodes(api):
    def ids(*filters):
        found = api.describe_instance_information(Filters=[{"Key": key, "Values": values} for key, values in filters])
        return [node["InstanceId"] for node in found["InstanceInformationList"]]

    equal(ids(), [TARGET])
    equal(ids(("InstanceIds", [TARGET, NO_TARGET]), ("PingStatus", ["Online"])), [TARGET])
    equal(ids(("InstanceIds", [NO_TARGET])), [])
    equal(ids(("PlatformTypes", ["Windows"])), [])
    equal(ids(("tag:Name", ["nothing"])), [])
    old = [{"key": "InstanceIds", "valueSet": [TARGET]}]
    [node] = api.describe_instance_information(InstanceInformationFilterList=old)["InstanceInformationList"]
    equal((node["InstanceId"], node["PlatformType"]), (TARGET, "Linux"))


def connection_status(api):
    equal(api.get_connection_status(Target=TARGET)["Status"], "connected")
    equal(api.get_connection_status(Target=NO_TARGET)["Status"], "notconnected")


def documents(api):
    pages = api.get_paginator("list_documents").paginate(PaginationConfig={"PageSize": 3})
    names = [document["Name"] for page in pages for document in page["DocumentIdentifiers"]]
    assert len(names) > 3 and len(names) == len(set(names)), names
    for name in names:
        described = api.describe_document(Name=name)["Document"]
        content = json.loads(api.get_document(Name=name)["Content"])
        equal((described["DocumentType"], content["schemaVersion"]), ("Session", "1.0"))
        equal({each["Name"] for each in described.get("Parameters", [])}, set(content.get("parameters", {})))


# Each request, and the name of its exception.
ERRORS = [
    ("start_session", {"Target": NO_TARGET}, "TargetNotConnected"),
    ("start_session", {"Target": TARGET, "DocumentName": "No-SuchDocument"}, "InvalidDocument"),
    (
        "start_session",
        {"Target": TARGET, "DocumentName": PORT_FORWARDING, "Parameters": {**PARAMETERS, "color": ["red"]}},
        "ParameterNotFound",
    ),
    (
        "start_session",
        {"Target": TARGET, "DocumentName": PORT_FORWARDING, "Parameters": {**PARAMETERS, "portNumber": ["65536"]}},
        "InvalidParameters",
    ),
    ("start_session", {"Target": TARGET, "DocumentName": "no document!"}, "ValidationException"),
    ("start_session", {"Target": TARGET, "Reason": "x" * 257}, "ValidationException"),
    ("describe_sessions", {"State": "Sleeping"}, "ValidationException"),
    ("describe_sessions", {"State": "Active", "MaxResults": 201}, "ValidationException"),
    ("describe_sessions", {"State": "Active", "NextToken": "made-up"}, "InvalidNextToken"),
    ("describe_sessions", {"State": "Active", "Filters": [{"key": "Color", "value": "red"}]}, "InvalidFilterKey"),
    ("describe_instance_information", {"Filters": [{"Key": "Color", "Values": ["red"]}]}, "InvalidFilterKey"),
    ("describe_instance_information", {"NextToken": "made-up"}, "InvalidNextToken"),
    ("list_documents", {"NextToken": "made-up"}, "InvalidNextToken"),
    ("terminate_session", {"SessionId": NO_SESSION}, "DoesNotExistException"),
    ("resume_session", {"SessionId": NO_SESSION}, "DoesNotExistException"),
    ("get_document", {"Name": "No-SuchDocument"}, "InvalidDocument"),
    ("describe_document", {"Name": PORT_FORWARDING, "DocumentVersion": "7"}, "InvalidDocumentVersion"),
    ("describe_patch_baselines", {}, "UnknownOperationException"),
]


def boto3_errors(api):
    from botocore.exceptions import ClientError

    for operation, arguments, name in ERRORS:
        try:
            answer = getattr(api, operation)(**arguments)
        except ClientError as error:
            said = error.response["Error"]
            equal((operation, said["Code"], type(error).__name__), (operation, name, class_of(name)))
            assert said["Message"], f"{operation}: no message"
            equal(error.response["ResponseMetadata"]["HTTPStatusCode"], 400)
        else:
            raise AssertionError(f"{operation} {arguments}: no {name} but {answer}")


def class_of(name):
    """Returns the class of an exception. One that is not in the service's model is reported as the general class."""
    return "ClientError" if name == "UnknownOperationException" else name


def unsigned(variables):
    from botocore import UNSIGNED
    from botocore.exceptions import ClientError

    try:
        client(variables, signature_version=UNSIGNED).get_connection_status(Target=TARGET)
    except ClientError as error:
        contains(error.response["Error"]["Code"], "MissingAuthenticationToken")
    else:
        raise AssertionError("an unsigned call was answered")


class Cli:
    """The AWS CLI, configured only with the lines that `local` printed."""

    def __init__(self, variables):
        self.environment = clean_environment({**variables, "AWS_PAGER": "", "AWS_DEFAULT_OUTPUT": "json"})

    def run(self, *arguments, path=None):
        environment = self.environment if path is None else {**self.environment, "PATH": path}
        return run([aws_cli(), "ssm", *arguments], env=environment)

    def ask(self, *arguments):
        return json.loads(self.run(*arguments).ok() or "null")


def cli_nodes(cli):
    arguments = ["describe-instance-information", "--query", "InstanceInformationList[].InstanceId"]
    equal(cli.ask(*arguments, "--filters", f"Key=InstanceIds,Values={TARGET}"), [TARGET])
    equal(cli.ask(*arguments, "--filters", "Key=PingStatus,Values=ConnectionLost"), [])


def cli_connection_status(cli):
    equal(cli.ask("get-connection-status", "--target", NO_TARGET), {"Target": NO_TARGET, "Status": "notconnected"})


def cli_documents(cli):
    content = json.loads(cli.ask("get-document", "--name", PORT_FORWARDING)["Content"])
    described = cli.ask("describe-document", "--name", PORT_FORWARDING)["Document"]
    equal({each["Name"] for each in described["Parameters"]}, set(content["parameters"]))


def cli_sessions(cli, api):
    session = start(api)["SessionId"]
    find = ["describe-sessions", "--filters", f"key=SessionId,value={session}", "--query", "Sessions[].Status"]
    equal(cli.ask(*find, "--state", "Active"), ["Connecting"])
    equal(cli.ask("resume-session", "--session-id", session)["SessionId"], session)
    equal(cli.ask("terminate-session", "--session-id", session), {"SessionId": session})
    equal(cli.ask(*find, "--state", "History"), ["Terminated"])


def cli_start_session(cli):
    """The CLI itself terminates a session for which there is no plugin."""
    reason = "no plugin"
    ended = cli.run("start-session", "--target", TARGET, "--reason", reason, path="/nonexistent")
    assert ended.code != 0
    contains(ended.stderr, "SessionManagerPlugin is not found")
    sessions = "Sessions[?Reason=='no plugin'].Status"
    equal(cli.ask("describe-sessions", "--state", "History", "--query", sessions), ["Terminated"])


def cli_errors(cli):
    port = ["start-session", "--target", TARGET, "--document-name", PORT_FORWARDING, "--parameters"]
    errors = [
        (["start-session", "--target", NO_TARGET], "TargetNotConnected"),
        (["start-session", "--target", TARGET, "--document-name", "No-SuchDocument"], "InvalidDocument"),
        ([*port, "host=127.0.0.1,portNumber=80,color=red"], "ParameterNotFound"),
        ([*port, "host=127.0.0.1,portNumber=65536"], "InvalidParameters"),
        (["start-session", "--target", TARGET, "--document-name", "no document!"], "ValidationException"),
        (["terminate-session", "--session-id", NO_SESSION], "DoesNotExistException"),
        (["describe-sessions", "--state", "Active", "--filters", "key=Color,value=red"], "InvalidFilterKey"),
        (["describe-sessions", "--state", "Active", "--starting-token", "made-up"], "InvalidNextToken"),
    ]
    for arguments, name in errors:
        ended = cli.run(*arguments)
        assert ended.code not in (0, None), f"{arguments}: no {name} but {ended.stdout}"
        contains(ended.stderr, f"({name})")


def cli_ends_tunnel(cli, variables):
    with Echo() as service, tunnel_to(service, variables, "--no-restart") as tunnel:
        ready = tunnel.event("ready")
        service.serves(ready["port"])
        session = ready["session_id"]
        find = ["describe-sessions", "--state", "Active", "--filters", f"key=SessionId,value={session}"]
        [told] = cli.ask(*find)["Sessions"]
        # The service is on the node itself.
        equal((told["Status"], told["DocumentName"], told["Reason"]), ("Connected", "AWS-StartPortForwardingSession", "tunnel"))
        cli.ask("terminate-session", "--session-id", session)
        ended = tunnel.finish(20)
    [error] = [event for event in map(json.loads, ended.stdout.splitlines()) if event["event"] == "error"]
    equal((ended.code, error["kind"], error["exit_code"]), (8, "session_ended", 8))


def cli_interrupts_tunnel(cli, variables):
    with Echo() as service, tunnel_to(service, variables) as tunnel:
        ready = tunnel.event("ready")
        service.serves(ready["port"])
        cli.ask("terminate-session", "--session-id", ready["session_id"])
        equal(tunnel.event("session_lost")["session_id"], ready["session_id"])
        service.serves(ready["port"])
        find = ["describe-sessions", "--state", "Active", "--query", "Sessions[?Reason=='tunnel'].SessionId"]
        [session] = cli.ask(*find)
        assert session != ready["session_id"], "the terminated session is still active"


def tunnel_to(service, variables, *more):
    spec = f"0:127.0.0.1:{service.port}"
    return Tool("forward", "--target", TARGET, "-L", spec, "--reason", "tunnel", "-o", "json", *more, env=variables)


class Echo:
    """A service behind the tunnel."""

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(30)
        self.port = self.listener.getsockname()[1]
        return self

    def __exit__(self, *_):
        self.listener.close()

    def serves(self, tunnel_port):
        """Checks that data passes through the tunnel in both directions."""
        with socket.create_connection(("127.0.0.1", tunnel_port), timeout=30) as near, self.listener.accept()[0] as far:
            for end, other in ((near, far), (far, near)):
                end.sendall(b"hello")
                other.settimeout(30)
                equal(other.recv(64), b"hello")
