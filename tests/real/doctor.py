"""`doctor` with moto, `aws-ssm-forward local` and a real MariaDB. Each check has one fault."""

import contextlib
import json
import socket
import ssl
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import harness
from account import REGION, Aws, Certificates, Lab, MariaDbWithTls
from database import free_port
from harness import Manager, Tool, contains, equal, run

NEEDS = ["boto3", "moto", "mariadbd", "mariadb-install-db", "mariadb", "openssl", "aws", "faketime"]

DATABASE = "rds:example-db"
PREFERENCES = {"schemaVersion": "1.0", "description": "Preferences", "sessionType": "Standard_Stream"}


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-doctor-") as name, Aws() as aws:
        folder = Path(name)
        folder.chmod(0o755)
        place = Place(aws, folder)
        suite.check("without a configuration, the check of the region fails", unconfigured)
        suite.check("invalid configuration files are reported", files, place)
        with MariaDbWithTls(folder, place.lab(None)) as mariadb:
            suite.check("no fault: MySQL greets, exit code 0, no session is left", well, place)
            suite.check("a node and a forward", forward, place)
            suite.check("no credentials", without_credentials, place)
            suite.check("access keys that are unknown to AWS", unknown_keys, place)
            suite.check("a wrong secret", wrong_secret, place)
            suite.check("a clock that is an hour ahead", skewed_clock, place)
            suite.check("a wrong region", wrong_region, place)
            suite.check("a region that does not exist", odd_region, place)
            suite.check("a node that is offline", offline, place)
            suite.check("a name that several nodes have", ambiguous, place)
            suite.check("an agent that is too old", old_agent, place)
            suite.check("a call that is throttled", throttled, place)
            suite.check("a call that is denied, with the statement that allows it", denied, place)
            suite.check("preferences without the permission to read them are unknown", unread_preferences, place)
            suite.check("preferences: a short idle time-out", short_timeouts, place)
            suite.check("preferences: a KMS key that cannot be used", unknown_key, place)
            suite.check("preferences: a KMS key that can be used", known_key, place)
            suite.check("a security group without the port; the printed command fixes it", closed_group, place)
            suite.check("a VPC endpoint that is missing", missing_endpoint, place)
            suite.check("TLS with an untrusted authority, and a CA bundle that contains it", intercepted, place)
            suite.check("an API without a server", nobody_there, place)
            suite.check("--no-session starts none", no_session, place)
        suite.check("a port that is closed", closed_port, place)
        suite.check("another service on the port", other_service, place)


class Place:
    """moto, certificates, and local Session Managers as needed."""

    def __init__(self, aws, folder):
        self.aws, self.folder = aws, folder
        self.certificates = Certificates(folder)

    def lab(self, manager):
        if manager is not None:
            return Lab(self.aws, manager, self.certificates)
        return type("Paper", (), {"aws": self.aws, "certificates": self.certificates})

    @contextlib.contextmanager
    def manager(self, *options):
        with Manager("--target", self.aws.node, *self.aws.hosts(), *options) as manager:
            yield self.lab(manager)

    def examine(self, *words, options=(), more=None):
        """Runs `doctor` with these options of `local`, and returns its report."""
        with self.manager(*options) as lab:
            # Only the local Session Manager checks the access keys.
            kms = {"AWS_ENDPOINT_URL_KMS": lab.variables["AWS_ENDPOINT_URL_SSM"]}
            return Report(*words, env={**lab.variables, **kms, **(more or {})})


class Report:
    """The JSON output of one run."""

    def __init__(self, *words, env, program=()):
        ended = run([*program, harness.binary(), "doctor", *words, "-o", "json"], env=harness.clean_environment(env))
        assert ended.stdout, ended.stderr
        self.text, self.code = ended.stdout + ended.stderr, ended.code
        found = json.loads(ended.stdout)
        equal(found["exit_code"], ended.code)
        self.checks = {check["check"]: check for check in found["checks"]}
        secret = env.get("AWS_SECRET_ACCESS_KEY")
        assert not secret or secret not in self.text, "a secret is printed"

    def status(self, name):
        return self.checks[name]["status"]

    def first(self, code, name, *parts):
        """Returns the first failure."""
        failed = [check["check"] for check in self.checks.values() if check["status"] == "failed"]
        equal((self.code, failed[:1]), (code, [name]))
        return self.has(name, "failed", *parts)

    def has(self, name, status, *parts):
        check = self.checks[name]
        equal((name, check["status"], check["saw"] if check["status"] != status else ""), (name, status, ""))
        contains("\n".join([check["saw"], *check["remedies"]]), *parts)
        assert check["why"].endswith("."), check
        return check


def unconfigured():
    report = Report(env={})
    report.first(4, "region", "AWS_REGION")
    equal(report.status("session"), "skipped")


def files(place):
    home = place.folder / "files"
    home.mkdir()
    (home / "config").write_text("[default]\nregion = eu-west-1\n[staging]\nregion = eu-west-1\n")
    (home / "credentials").write_text("nonsense\n")
    paths = {"AWS_CONFIG_FILE": str(home / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials")}
    Report(env=paths).first(4, "configuration", str(home / "credentials"), "line 1")
    (home / "credentials").write_text("")
    Report(env=paths).has("configuration", "warning", "[staging]", "[profile staging]")


def well(place):
    with place.manager() as lab:
        report = Report(DATABASE, env=lab.variables)
        equal({check["status"] for check in report.checks.values()}, {"ok", "skipped"})
        equal(report.code, 0)
        report.has("greeting", "ok", "MariaDB")
        report.has("security-groups", "ok", place.aws.groups["db"])
        report.has("target", "ok", place.aws.node)
        import boto3

        variables = lab.variables
        ssm = boto3.client(
            "ssm", region_name=REGION, endpoint_url=variables["AWS_ENDPOINT_URL_SSM"],
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"], aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        )
        equal(ssm.describe_sessions(State="Active")["Sessions"], [])
        [session] = ssm.describe_sessions(State="History")["Sessions"]
        equal((session["Reason"], session["DocumentName"]), ("aws-ssm-forward doctor", "AWS-StartPortForwardingSessionToRemoteHost"))
        # The same as text.
        told = Tool("doctor", DATABASE, env=variables).finish()
        equal(told.code, 0)
        contains(told.stdout, "ok       greeting", "MariaDB")


def forward(place):
    host, port = place.aws.database["Endpoint"]["Address"], place.aws.ports["mysql"]
    report = place.examine(place.aws.node, "-L", f"0:{host}:{port}")
    report.has("port", "ok", f"{host}:{port}")
    equal(report.code, 0)


def without_credentials(place):
    report = place.examine(DATABASE, more={"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""})
    report.first(4, "credentials", "aws configure")
    equal(report.status("target"), "skipped")


def unknown_keys(place):
    with Answering(403, b"<ErrorResponse><Error><Code>InvalidClientTokenId</Code><Message>no</Message></Error></ErrorResponse>") as url:
        report = place.examine(DATABASE, more={"AWS_ENDPOINT_URL_STS": url})
    report.first(4, "identity", "InvalidClientTokenId", "AWS_ACCESS_KEY_ID")


def wrong_secret(place):
    """moto does not check signatures; the local Session Manager does."""
    report = place.examine(DATABASE, more={"AWS_SECRET_ACCESS_KEY": "another-secret-that-is-wrong"})
    report.first(4, "target", "check the credentials")


def skewed_clock(place):
    with place.manager() as lab:
        # Only the wall clock is wrong.
        env = {**lab.variables, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        report = Report(DATABASE, env=env, program=["faketime", "-f", "+1h"])
    report.first(4, "clock", "s ahead", "timedatectl set-ntp true")
    equal(report.status("session"), "skipped")


def wrong_region(place):
    report = place.examine(DATABASE, "--region", "eu-west-1")
    report.first(5, "service", "eu-west-1", "aws-ssm-forward ls rds --region eu-west-1")


def odd_region(place):
    place.examine("--region", "eu-central-7").has("region", "warning", "eu-central-7", "spelling")


def offline(place):
    report = place.examine("i-0aa", options=["--node", "i-0aa,Name=away,offline"])
    report.first(5, "target", "offline since", "aws ec2 start-instances --instance-ids i-0aa", "AmazonSSMManagedInstanceCore")
    place.examine("nobody").first(5, "target", "nobody", REGION, "aws-ssm-forward ls")


def ambiguous(place):
    report = place.examine("web", options=["--node", "i-0aa,Name=web", "--node", "i-0bb,Name=web"])
    report.has("target", "warning", "2 online nodes", "--any")


def old_agent(place):
    report = place.examine(DATABASE, "-t", place.aws.node, options=["--agent-version", "3.0.100.0"])
    report.first(6, "agent", "3.0.100.0", "3.1.1374", "AWS-UpdateSSMAgent")
    report = place.examine(place.aws.node, options=["--agent-version", "3.0.100.0"])
    report.has("agent", "warning", "one connection at a time")


def throttled(place):
    report = place.examine(place.aws.node, options=["--fault", "api,operation=DescribeInstanceInformation,answer=throttled"])
    report.first(5, "target", "DescribeInstanceInformation", "ThrottlingException", "try again later")


def denied(place):
    report = place.examine(place.aws.node, options=["--fault", "api,operation=DescribeInstanceInformation,answer=forbidden"])
    report.first(5, "target", "DescribeInstanceInformation", '"Action": "ssm:DescribeInstanceInformation"')
    report = place.examine(place.aws.node, options=["--fault", "api,operation=StartSession,answer=forbidden"])
    report.first(5, "session", "StartSession", f"aws-ssm-forward policy {place.aws.node}")


def unread_preferences(place):
    report = place.examine(place.aws.node, options=["--fault", "api,operation=GetDocument,answer=forbidden"])
    report.has("preferences", "unknown", "GetDocument", '"Action": "ssm:GetDocument"')
    equal(report.code, 1)


def preferences(place, **inputs):
    path = place.folder / "preferences.json"
    path.write_text(json.dumps({**PREFERENCES, "inputs": inputs}))
    return ["--document", f"SSM-SessionManagerRunShell={path}"]


def short_timeouts(place):
    options = preferences(place, idleSessionTimeout="3", maxSessionDuration="30")
    report = place.examine(place.aws.node, options=options)
    report.has("preferences", "warning", "after 3 min", "--keep-alive", "30 min in any case")
    equal(report.code, 1)


def unknown_key(place):
    report = place.examine(place.aws.node, options=preferences(place, kmsKeyId="alias/missing"))
    report.first(6, "preferences", "alias/missing", "kms:GenerateDataKey", "kms:Decrypt")


def known_key(place):
    options = [*preferences(place, kmsKeyId="alias/lab"), "--kms-key", "alias/lab"]
    report = place.examine(place.aws.node, options=options)
    report.has("preferences", "ok", "encrypted with the KMS key alias/lab")


def closed_group(place):
    ec2, group = place.aws.client("ec2"), place.aws.groups["db"]
    ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[place.aws.database_rule])
    report = place.examine(DATABASE)
    check = report.first(7, "security-groups", group, str(place.aws.ports["mysql"]))
    [command] = check["remedies"]
    environment = {
        "PATH": f"{Path(harness.aws_cli()).parent}:{harness.SEARCH_PATH}", "AWS_ENDPOINT_URL": place.aws.url, "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "AKIALOCALLOCALLOCAL0", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "HOME": str(place.folder),
    }
    run(["sh", "-c", command], env=environment).ok()
    place.examine(DATABASE).has("security-groups", "ok")


def missing_endpoint(place):
    ec2 = place.aws.client("ec2")
    make = lambda service: ec2.create_vpc_endpoint(
        VpcId=place.aws.vpc, ServiceName=f"com.amazonaws.{REGION}.{service}", VpcEndpointType="Interface",
        SubnetIds=place.aws.subnets, SecurityGroupIds=[place.aws.groups["db"]], PrivateDnsEnabled=True,
    )["VpcEndpoint"]["VpcEndpointId"]
    made = [make("ssm")]
    try:
        report = place.examine(DATABASE)
        create = f"aws ec2 create-vpc-endpoint --vpc-id {place.aws.vpc}"
        report.has("vpc-endpoints", "warning", "none for ssmmessages", create, f"com.amazonaws.{REGION}.ssmmessages")
        # The endpoint's security group does not accept the node's HTTPS either.
        report.has("vpc-endpoints", "warning", "does not let the node in", "--port 443")
        rule = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "10.0.0.0/16"}]}
        ec2.authorize_security_group_ingress(GroupId=place.aws.groups["db"], IpPermissions=[rule])
        made.append(make("ssmmessages"))
        place.examine(DATABASE).has("vpc-endpoints", "ok", *made)
    finally:
        ec2.delete_vpc_endpoints(VpcEndpointIds=made)


def intercepted(place):
    with Answering(200, b"", tls=place.certificates.issue("localhost")) as url:
        variables = {"AWS_ENDPOINT_URL_SSM": url}
        report = place.examine("i-0aa", more=variables)
        report.first(5, "api", "CN=ca", "AWS_CA_BUNDLE", "openssl s_client")
        equal(report.status("clock"), "skipped")
        report = place.examine("i-0aa", more={**variables, "AWS_CA_BUNDLE": str(place.certificates.ca)})
        report.has("api", "ok", "TLS verified")


def nobody_there(place):
    port = free_port()
    report = place.examine("i-0aa", more={"AWS_ENDPOINT_URL_SSM": f"http://127.0.0.1:{port}"})
    report.first(5, "api", "no TCP connection", f"127.0.0.1:{port}")


def no_session(place):
    report = place.examine(DATABASE, "--no-session")
    equal({report.status(name) for name in ["session", "port", "greeting"]}, {"skipped"})
    equal(report.code, 0)


def closed_port(place):
    report = place.examine(DATABASE)
    report.first(7, "port", "nothing listens", "/dev/tcp/")
    equal(report.status("greeting"), "skipped")


def other_service(place):
    with socket.create_server(("127.0.0.1", place.aws.ports["mysql"])) as server:
        threading.Thread(target=talk, args=(server,), daemon=True).start()
        place.examine(DATABASE).first(7, "greeting", "not MySQL")


def talk(server):
    """Sends a greeting that no database sends."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            connection.sendall(b"220 mail.example ESMTP\r\n")
            connection.close()


@contextlib.contextmanager
def Answering(status, body, tls=None):
    """A server with one answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # A client that refuses the certificate is not an error here.
    server.handle_error = lambda *_: None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls[1], tls[0])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if tls else ''}://{'localhost' if tls else '127.0.0.1'}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
