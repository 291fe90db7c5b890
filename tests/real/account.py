"""An AWS account for the tests: moto simulates the APIs, and the account's services are real servers with certificates for the
names that moto returns."""

import contextlib
import json
import os
import shutil
import socket
import ssl
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from database import Server as MariaDb
from database import free_port
from harness import SEARCH_PATH, Child, Tool, run, wait_until

REGION = "us-east-1"
POSTGRES = Path("/usr/lib/postgresql")


class Lab:
    """The command's environment variables for AWS, and the certificate authorities that the clients trust."""

    def __init__(self, aws, manager, certificates):
        self.aws = aws
        self.certificates = certificates
        self.variables = {**manager.variables, "AWS_ENDPOINT_URL_SSM": manager.variables["AWS_ENDPOINT_URL"]}
        del self.variables["AWS_ENDPOINT_URL"]
        for service in ["EC2", "RDS", "ELASTICACHE", "EKS", "OPENSEARCH", "STS"]:
            self.variables[f"AWS_ENDPOINT_URL_{service}"] = aws.url
        self.variables["AWS_ENDPOINT_URL_ELASTICACHE"] = aws.caches.url
        self.variables["AWS_SSM_FORWARD_RDS_CA"] = str(certificates.ca)


def run_tool(lab, *arguments, more=None):
    return Tool(*arguments, env={**lab.variables, **(more or {})}).finish()


class Client:
    """A tunnel and the command line that it printed."""

    def __init__(self, tool):
        self.tool = tool
        ready = tool.event("ready")
        self.port = ready["port"]
        self.command = tool.event("client")["command"]


@contextlib.contextmanager
def tunnel(lab, *arguments):
    with Tool("forward", *arguments, "-o", "json", env=lab.variables) as tool:
        yield Client(tool)
        tool.stop().ok()


def shell(lab, command, **variables):
    return run(["sh", "-c", command], env={"PATH": SEARCH_PATH, "HOME": os.environ["TESTS_HOME"], "LC_ALL": "C.UTF-8", **variables})


class Aws:
    """moto's server, with a VPC, two instances, and a service of each kind."""

    def __enter__(self):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.server = Child([Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)])
        wait_until("moto to start", lambda: "Running on" in self.server.stderr)
        ec2, rds = self.client("ec2"), self.client("rds")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        zones = enumerate([f"{REGION}a", f"{REGION}b"])
        subnets = [
            ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{at}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
            for at, zone in zones
        ]
        self.vpc, self.subnets = vpc, subnets
        self.groups = {name: ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc)["GroupId"] for name in ("node", "db")}
        self.node, self.unmanaged = (instance(ec2, subnets[0], self.groups["node"], name) for name in ("bastion", "unmanaged"))
        self.ports = {name: free_port() for name in ("mysql", "postgres", "redis")}
        rule = {"IpProtocol": "tcp", "FromPort": self.ports["mysql"], "ToPort": self.ports["mysql"]}
        self.database_rule = {**rule, "UserIdGroupPairs": [{"GroupId": self.groups["node"]}]}
        ec2.authorize_security_group_ingress(GroupId=self.groups["db"], IpPermissions=[self.database_rule])
        rds.create_db_subnet_group(DBSubnetGroupName="g", DBSubnetGroupDescription="g", SubnetIds=subnets)
        common = {"MasterUsername": "admin", "MasterUserPassword": "not-a-secret", "DBSubnetGroupName": "g"}
        self.database = rds.create_db_instance(
            DBInstanceIdentifier="example-db", DBInstanceClass="db.t4g.micro", Engine="mysql", AllocatedStorage=20,
            Port=self.ports["mysql"], EnableIAMDatabaseAuthentication=True, DBName="test",
            VpcSecurityGroupIds=[self.groups["db"]], **common,
        )["DBInstance"]
        self.cluster = rds.create_db_cluster(
            DBClusterIdentifier="reports", Engine="aurora-postgresql", Port=self.ports["postgres"], DatabaseName="postgres",
            EnableIAMDatabaseAuthentication=True, **common
        )["DBCluster"]
        self.cache = self.client("elasticache").create_replication_group(
            ReplicationGroupId="cache", ReplicationGroupDescription="c", Engine="redis", NumCacheClusters=1,
            Port=self.ports["redis"], TransitEncryptionEnabled=True,
        )["ReplicationGroup"]
        self.caches = Caches(self.url)
        eks = self.client("eks")
        role = "arn:aws:iam::123456789012:role/eks"
        eks.create_cluster(name="prod", roleArn=role, resourcesVpcConfig={"subnetIds": subnets})
        self.kubernetes = eks.describe_cluster(name="prod")["cluster"]["endpoint"]
        self.client("opensearch").create_domain(DomainName="logs")
        self.domain = self.client("opensearch").describe_domain(DomainName="logs")["DomainStatus"]["Endpoint"]
        return self

    def __exit__(self, *_):
        self.caches.stop()
        self.server.stop()

    def client(self, service):
        import boto3

        keys = {"aws_access_key_id": "AKIALOCALLOCALLOCAL0", "aws_secret_access_key": "not-a-secret"}
        return boto3.client(service, region_name=REGION, endpoint_url=self.url, **keys)

    def names(self):
        """The services' host names."""
        primary = self.cache["NodeGroups"][0]["PrimaryEndpoint"]["Address"]
        kubernetes = self.kubernetes.removeprefix("https://").strip("/").lower()
        of_rds = [self.database["Endpoint"]["Address"], self.cluster["Endpoint"], self.cluster["ReaderEndpoint"]]
        return [*of_rds, primary, kubernetes, self.domain]

    def hosts(self):
        """Options with which only the node resolves the names."""
        return [word for name in self.names() for word in ("--host", f"{name}=127.0.0.1")]


class Caches:
    """ElastiCache: moto, and one serverless cache, which moto does not support."""

    def __init__(self, moto):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                asked = parse_qs(body.decode())
                if asked["Action"] == ["DescribeServerlessCaches"]:
                    is_here = f"/{REGION}/" in self.headers["Authorization"]
                    status, answer = serverless(asked.get("ServerlessCacheName"), is_here)
                else:
                    status, answer = self.passed_on(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def passed_on(self, body):
                try:
                    with urllib.request.urlopen(urllib.request.Request(moto, body, dict(self.headers))) as answer:
                        return answer.status, answer.read()
                except urllib.error.HTTPError as refusal:
                    return refusal.code, refusal.read()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def serverless(wanted, is_here):
    """The answer of DescribeServerlessCaches, according to botocore's model of ElastiCache."""
    if wanted not in (None, ["sessions"]) or (wanted and not is_here):
        error = "<Error><Type>Sender</Type><Code>ServerlessCacheNotFoundFault</Code><Message>not found</Message></Error>"
        return 404, f"<ErrorResponse>{error}</ErrorResponse>".encode()
    endpoint = "<Address>sessions.example.cache.amazonaws.com</Address><Port>6379</Port>"
    cache = "<ServerlessCacheName>sessions</ServerlessCacheName><Status>available</Status><Engine>valkey</Engine>"
    cache = f"<member>{cache}<Endpoint>{endpoint}</Endpoint></member>" if is_here else ""
    caches = f"<ServerlessCaches>{cache}</ServerlessCaches>"
    result = f"<DescribeServerlessCachesResult>{caches}</DescribeServerlessCachesResult>"
    return 200, f"<DescribeServerlessCachesResponse>{result}</DescribeServerlessCachesResponse>".encode()


def instance(ec2, subnet, group, name):
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}]
    started = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, SubnetId=subnet, SecurityGroupIds=[group], TagSpecifications=tags)
    return started["Instances"][0]["InstanceId"]


class Certificates:
    """A certificate authority, and its certificates for the services' real names."""

    def __init__(self, folder):
        self.folder = folder / "certificates"
        self.folder.mkdir()
        self.ca, self.other = self.authority("ca"), self.authority("other")

    def authority(self, name):
        key, certificate = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        options = ["-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign"]
        self.openssl("req", *options, *self.new_key(key), "-out", certificate)
        return certificate

    def issue(self, *hosts):
        """Returns the paths of a key and a certificate for these hosts."""
        key, request, certificate = (self.folder / f"server-{len(list(self.folder.iterdir()))}{end}" for end in (".key", ".csr", ".pem"))
        names = ",".join(f"DNS:{host}" for host in hosts)
        self.openssl("req", "-nodes", "-subj", "/CN=service", "-addext", f"subjectAltName={names}", *self.new_key(key), "-out", request)
        options = ["-days", "2", "-CA", self.ca, "-CAkey", self.ca.with_suffix(".key"), "-CAcreateserial", "-copy_extensions", "copy"]
        self.openssl("x509", "-req", "-in", request, "-out", certificate, *options)
        return key, certificate

    @staticmethod
    def new_key(path):
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", path]

    @staticmethod
    def openssl(*arguments):
        run(["openssl", *arguments], env={"PATH": SEARCH_PATH}).ok()


def given_to(user, folder, files):
    """Returns copies of the files that only the server's user can read."""
    copies = []
    for file in files:
        copy = folder / file.name
        shutil.copyfile(file, copy)
        copy.chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(copy, user)
        copies.append(copy)
    return copies


@contextlib.contextmanager
def MariaDbWithTls(folder, lab):
    folder = folder / "mariadb"
    folder.mkdir()
    key, certificate = given_to("mysql", folder, lab.certificates.issue(lab.aws.database["Endpoint"]["Address"]))
    options = [f"--ssl-cert={certificate}", f"--ssl-key={key}", "--require-secure-transport=ON"]
    server = MariaDb(folder, lab.aws.ports["mysql"], options, user="admin")
    with server.process:
        yield server


@contextlib.contextmanager
def Postgres(folder, lab, login=""):
    """`login` is a line of pg_hba.conf before the line that trusts every client."""
    folder = folder / "postgres"
    folder.mkdir()
    user = None
    if os.geteuid() == 0:
        user = "postgres"
        shutil.chown(folder, user)
    key, certificate = given_to("postgres", folder, lab.certificates.issue(lab.aws.cluster["Endpoint"], lab.aws.cluster["ReaderEndpoint"]))
    data, environment = folder / "data", {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}
    programs = max(POSTGRES.iterdir(), key=lambda version: int(version.name)) / "bin"
    run([programs / "initdb", "-D", data, "-U", "admin", "--auth=trust", "--no-sync"], env=environment, user=user).ok()
    settings = ["ssl=on", f"ssl_cert_file={certificate}", f"ssl_key_file={key}", f"unix_socket_directories={folder}", "fsync=off"]
    options = [word for setting in settings for word in ("-c", setting)]
    (data / "pg_hba.conf").write_text(f"{login}\nhostssl all all 127.0.0.1/32 trust\n")
    arguments = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(lab.aws.ports["postgres"]), *options]
    with Child(arguments, env=environment, user=user) as server:
        wait_until("PostgreSQL to start", lambda: "ready to accept" in server.stderr)
        yield


@contextlib.contextmanager
def Redis(folder, lab):
    key, certificate = lab.certificates.issue(lab.aws.cache["NodeGroups"][0]["PrimaryEndpoint"]["Address"])
    options = ["--port", "0", "--tls-port", str(lab.aws.ports["redis"]), "--bind", "127.0.0.1", "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", lab.certificates.ca]
    with Child(["redis-server", *options, "--save", "", "--dir", folder], env={"PATH": SEARCH_PATH}) as server:
        wait_until("Redis to start", lambda: any("Ready to accept" in line for line in server.lines_so_far(0.1)))
        yield


class Https:
    """An HTTPS server on port 443 of the service's name, which the node resolves to a separate address."""

    def __init__(self, lab, what, answer):
        self.lab, self.what, self.answer = lab, what, json.dumps(answer).encode()

    def __enter__(self):
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        kubernetes, domain = self.lab.aws.names()[-2:]
        key, certificate = self.lab.certificates.issue(kubernetes if self.what == "kubernetes" else domain)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server = ThreadingHTTPServer(("127.0.0.1", 443), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def Refusing():
    """An API that refuses every call, with IAM's error texts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            text = b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def greeting(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.settimeout(5)
        return connection.recv(100)


class Greeter:
    """A server that sends the same text to each connection."""

    def __init__(self, text=b"hello"):
        self._text = text
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            connection, _ = self._server.accept()
            connection.sendall(self._text)
            connection.close()


class Relay:
    """A TCP port that forwards to the manager that was set last."""

    def __enter__(self):
        self._server = socket.create_server(("127.0.0.1", 0))
        self._target = None
        self._open = []
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def to(self, manager):
        self._target = int(manager.variables["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
        # Connections that clients keep for further calls still lead to the previous manager.
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for ends in [(near, far), (far, near)]:
                    threading.Thread(target=copy, args=ends, daemon=True).start()

    def __exit__(self, *_):
        self._server.close()


def copy(source, sink):
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
