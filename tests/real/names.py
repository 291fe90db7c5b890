"""Nodes and services by name: moto simulates AWS, `aws-ssm-forward local` Session Manager, the services are real, and each
client is started with the command line that the tunnel prints."""

import contextlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import harness
import infrastructure
from database import Server as MariaDb
from database import free_port
from harness import SEARCH_PATH, Child, Manager, Tool, contains, equal, run, wait_until

NEEDS = ["boto3", "moto", "mariadbd", "mariadb-install-db", "mariadb", "openssl", "postgres", "psql", "redis-server", "redis-cli"]
NEEDS += ["kubectl", "curl", "checkov", "hcl-tools"]

REGION = "us-east-1"
# Features of IAM that parliament's tables do not contain: a condition, and the resources of an action.
NEWER = ["ssm:SessionDocumentAccessCheck for action ssm:StartSession", "ssmmessages:OpenDataChannel"]
POSTGRES = Path("/usr/lib/postgresql")


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-names-") as name, Aws() as aws:
        folder = Path(name)
        folder.chmod(0o755)
        certificates = Certificates(folder)
        with Manager("--target", aws.node, *aws.hosts()) as manager:
            lab = Lab(aws, manager, certificates)
            targets(suite, lab)
            with_services(suite, lab, folder)


def targets(suite, lab):
    suite.check("ls lists nodes, as a table and as JSON", listed, lab)
    suite.check("ls rds lists databases", listed_databases, lab)
    for target in ["local", "tag:Name=local", "127.0.0.1", lab.aws.node]:
        suite.check(f"exec on {target}", executed, lab, target)
    suite.check("a name that nothing has is told, with region and what to do", no_name, lab)
    suite.check("a name that nothing has yet is waited for", awaited, lab)
    suite.check("an instance without an agent is told by its id", unmanaged, lab)
    suite.check("a database that is not there is told", no_database, lab)
    suite.check("what may not be looked up names the permission", denied, lab)
    suite.check("a token is botocore's", token, lab)
    suite.check("a policy passes parliament, as JSON and as Terraform", policies, lab)


def with_services(suite, lab, folder):
    with MariaDbWithTls(folder, lab) as mariadb:
        suite.check("rds: MySQL by the printed command, verified", mysql, lab, mariadb)
        suite.check("rds: MySQL with another authority is refused", mysql_wrong_authority, lab, mariadb)
        suite.check("rds: a port that is taken is passed over", port_taken, lab)
        suite.check("rds: a login file with a token, private, and gone at the end", login_file, lab)
    with Postgres(folder, lab):
        suite.check("rds: PostgreSQL by the printed command, verify-full", postgres, lab)
    with Redis(folder, lab):
        suite.check("elasticache: by the printed command, over TLS", redis, lab)
    with Https(lab, "kubernetes", {"gitVersion": "v1.30.0", "major": "1", "minor": "30"}):
        suite.check("eks: kubectl by the printed command and by --kubeconfig", kubernetes, lab, folder)
    with Https(lab, "opensearch", {"cluster_name": "logs"}):
        suite.check("opensearch: curl by the printed command, verified", opensearch, lab)


def listed(lab):
    [node] = json.loads(run_tool(lab, "ls", "-o", "json").ok())
    equal((node["id"], node["address"], node["connection"]), (lab.aws.node, "127.0.0.1", "online"))
    # EC2 knows the tag that Systems Manager does not report.
    equal(node["name"], "bastion")
    head, row = run_tool(lab, "ls").ok().splitlines()
    assert head.startswith("ID") and head.index("CONNECTION") == row.index("online"), (head, row)


def listed_databases(lab):
    found = {row["name"]: row for row in json.loads(run_tool(lab, "ls", "rds", "-o", "json").ok())}
    equal(found["rds:example-db"]["engine"], "mysql")
    contains(found["rds:reports"]["endpoint"], ":")


def executed(lab, target):
    equal(run_tool(lab, "exec", target, "--", "echo found").ok().strip(), "found")


def no_name(lab):
    ended = run_tool(lab, "exec", "nobody", "--", "true")
    equal(ended.code, 5)
    contains(ended.stderr, "nobody", REGION, "aws-ssm-forward ls")
    equal(len(ended.stderr.splitlines()), 1)


def awaited(lab):
    ended = run_tool(lab, "exec", "nobody", "--wait-connected", "3s", "--", "true")
    equal(ended.code, 5)
    contains(ended.stderr, "nobody", "waited 3 s")


def unmanaged(lab):
    ended = run_tool(lab, "shell", "unmanaged")
    equal(ended.code, 5)
    contains(ended.stderr, lab.aws.unmanaged, "running", "AmazonSSMManagedInstanceCore")


def no_database(lab):
    ended = run_tool(lab, "forward", "rds:nothing")
    equal(ended.code, 5)
    contains(ended.stderr, "nothing", REGION)


def denied(lab):
    """A service that refuses the lookup of the database."""
    with Refusing() as url:
        ended = run_tool(lab, "forward", "rds:example-db", more={"AWS_ENDPOINT_URL_RDS": url})
    equal(ended.code, 5)
    contains(ended.stderr, "DescribeDBInstances", "rds:DescribeDBInstances")


def token(lab):
    """Both sign with the present time, so only what does not depend on it is compared."""
    ours = run_tool(lab, "token", "rds:example-db", "--user", "app").ok().strip()
    host = lab.aws.database["Endpoint"]
    theirs = lab.aws.client("rds").generate_db_auth_token(host["Address"], host["Port"], "app")
    fixed = lambda text: re.sub(r"(X-Amz-Date|X-Amz-Credential|X-Amz-Signature)=[^&]*", r"\1", text)
    equal(fixed(ours), fixed(theirs))


def policies(lab):
    arguments = [lab.aws.node, "tag:Role=bastion", "rds:example-db", "elasticache:cache", "eks:prod", "ecs:prod/web"]
    arguments += ["--shell", "--exec", "--db-user", "app"]
    document = run_tool(lab, "policy", *arguments).ok()
    contains(document, lab.aws.database["DbiResourceId"], "ssm:SessionDocumentAccessCheck")
    lint = "import sys, json; from parliament import analyze_policy_string as lint; "
    lint += "print(json.dumps([str(finding) for finding in lint(sys.stdin.read()).findings]))"
    linted = subprocess.run([harness.CHECKS / "bin/python", "-W", "ignore", "-c", lint], input=document, capture_output=True, text=True)
    equal(linted.returncode, 0)
    findings = json.loads(linted.stdout.splitlines()[-1])
    equal([finding for finding in findings if not any(newer in finding for newer in NEWER)], [])
    # Proof that the linter finds errors.
    broken = document.replace("ssm:StartSession", "ssm:StartSesion")
    linted = subprocess.run([harness.CHECKS / "bin/python", "-W", "ignore", "-c", lint], input=broken, capture_output=True, text=True)
    contains(linted.stdout, "StartSesion")
    terraform = run_tool(lab, "policy", *arguments, "-o", "terraform").ok()
    contains(terraform, "$${aws:userid}")
    with tempfile.NamedTemporaryFile("w", suffix=".tf") as file:
        file.write(terraform)
        file.flush()
        infrastructure.parsed([file.name])
        infrastructure.formatted([file.name])


def mysql(lab, mariadb):
    with tunnel(lab, "rds:example-db") as client:
        contains(client.command, "--ssl-ca", "VERIFY_CA", "--user=admin")
        # The client of MariaDB reads the password from its variable.
        command = client.command.replace(" --password", "") + " --execute='SELECT 6*7' --batch --skip-column-names"
        equal(shell(lab, command, MYSQL_PWD=mariadb.password).ok().strip(), "42")


def mysql_wrong_authority(lab, mariadb):
    with tunnel(lab, "rds:example-db", "--rds-ca", str(lab.certificates.other)) as client:
        command = client.command.replace(" --password", "") + " --execute='SELECT 6*7'"
        ended = shell(lab, command, MYSQL_PWD=mariadb.password)
        assert ended.code != 0, ended.stdout
        contains(ended.stderr.lower(), "certificate")


def port_taken(lab):
    port = lab.aws.database["Endpoint"]["Port"]
    with tunnel(lab, "rds:example-db") as first, tunnel(lab, "rds:example-db") as second:
        assert port not in (first.port, second.port), "the database itself has the port here"
        assert first.port != second.port


def login_file(lab):
    with tunnel(lab, "rds:example-db", "--iam-auth", "app") as client:
        path = Path(re.search(r"--defaults-extra-file=(\S+)", client.command).group(1))
        equal((path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777), (0o600, 0o700))
        contains(path.read_text(), "Action=connect&DBUser=app", f"port={client.port}")
        contains(shell(lab, f"mariadb --defaults-extra-file={path} --print-defaults").stdout, "--user=app")
        assert "X-Amz-Signature" not in Path(f"/proc/{client.tool.process.pid}/cmdline").read_text()
    assert not path.parent.exists(), "the login file was left behind"


def postgres(lab):
    with tunnel(lab, "rds:reports") as client:
        contains(client.command, "sslmode=verify-full", "hostaddr=127.0.0.1", f"host={lab.aws.cluster['Endpoint']}")
        equal(shell(lab, f"{client.command} -At -c 'SELECT 6*7'").ok().strip(), "42")


def redis(lab):
    with tunnel(lab, "elasticache:cache", "--target", lab.aws.node) as client:
        contains(client.command, "--tls", "--sni")
        equal(shell(lab, f"{client.command} --cacert {lab.certificates.ca} PING").ok().strip(), "PONG")


def kubernetes(lab, folder):
    config = folder / "kubeconfig"
    with tunnel(lab, "eks:prod", "--target", lab.aws.node) as client:
        contains(client.command, "--tls-server-name=")
        command = client.command.replace("get pods", f"--certificate-authority={lab.certificates.ca} --token=x version --output=json")
        contains(shell(lab, command).stdout, "v1.30.0")
    with tunnel(lab, "eks:prod", "--target", lab.aws.node, "--kubeconfig", str(config)) as client:
        contains(client.command, f"--kubeconfig={config}")
        equal(config.stat().st_mode & 0o777, 0o600)
        [cluster] = json.loads(config.read_text())["clusters"]
        equal(cluster["cluster"]["server"], f"https://127.0.0.1:{client.port}")
    config.write_text("apiVersion: v1\n")
    ended = run_tool(lab, "forward", "eks:prod", "--target", lab.aws.node, "--kubeconfig", str(config))
    equal(ended.code, 74)
    contains(ended.stderr, "was not written by this command")
    equal(config.read_text(), "apiVersion: v1\n")


def opensearch(lab):
    with tunnel(lab, "opensearch:logs", "--target", lab.aws.node) as client:
        contains(shell(lab, f"{client.command} --silent --show-error --cacert {lab.certificates.ca}").ok(), "logs")


class Lab:
    """The command's environment for AWS, and the authorities that its clients trust."""

    def __init__(self, aws, manager, certificates):
        self.aws = aws
        self.certificates = certificates
        self.variables = {**manager.variables, "AWS_ENDPOINT_URL_SSM": manager.variables["AWS_ENDPOINT_URL"]}
        del self.variables["AWS_ENDPOINT_URL"]
        for service in ["EC2", "RDS", "ELASTICACHE", "EKS", "OPENSEARCH", "STS"]:
            self.variables[f"AWS_ENDPOINT_URL_{service}"] = aws.url
        self.variables["AWS_SSM_FORWARD_RDS_CA"] = str(certificates.ca)


def run_tool(lab, *arguments, more=None):
    return Tool(*arguments, env={**lab.variables, **(more or {})}).finish()


class Client:
    """A tunnel and the command line that it printed."""

    def __init__(self, tool):
        self.tool = tool
        self.port = tool.event("ready")["port"]
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
            DBClusterIdentifier="reports", Engine="aurora-postgresql", Port=self.ports["postgres"], DatabaseName="postgres", **common
        )["DBCluster"]
        self.cache = self.client("elasticache").create_replication_group(
            ReplicationGroupId="cache", ReplicationGroupDescription="c", Engine="redis", NumCacheClusters=1,
            Port=self.ports["redis"], TransitEncryptionEnabled=True,
        )["ReplicationGroup"]
        eks = self.client("eks")
        role = "arn:aws:iam::123456789012:role/eks"
        eks.create_cluster(name="prod", roleArn=role, resourcesVpcConfig={"subnetIds": subnets})
        self.kubernetes = eks.describe_cluster(name="prod")["cluster"]["endpoint"]
        self.client("opensearch").create_domain(DomainName="logs")
        self.domain = self.client("opensearch").describe_domain(DomainName="logs")["DomainStatus"]["Endpoint"]
        return self

    def __exit__(self, *_):
        self.server.stop()

    def client(self, service):
        import boto3

        keys = {"aws_access_key_id": "AKIALOCALLOCALLOCAL0", "aws_secret_access_key": "not-a-secret"}
        return boto3.client(service, region_name=REGION, endpoint_url=self.url, **keys)

    def names(self):
        """The services' host names."""
        primary = self.cache["NodeGroups"][0]["PrimaryEndpoint"]["Address"]
        kubernetes = self.kubernetes.removeprefix("https://").strip("/").lower()
        return [self.database["Endpoint"]["Address"], self.cluster["Endpoint"], primary, kubernetes, self.domain]

    def hosts(self):
        """Only the node resolves them."""
        return [word for name in self.names() for word in ("--host", f"{name}=127.0.0.1")]


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

    def issue(self, host):
        """A key and a certificate for one host."""
        key, request, certificate = (self.folder / f"server-{len(list(self.folder.iterdir()))}{end}" for end in (".key", ".csr", ".pem"))
        self.openssl("req", "-nodes", "-subj", "/CN=service", "-addext", f"subjectAltName=DNS:{host}", *self.new_key(key), "-out", request)
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
    """Copies that only a server's own user can read."""
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
def Postgres(folder, lab):
    folder = folder / "postgres"
    folder.mkdir()
    user = None
    if os.geteuid() == 0:
        user = "postgres"
        shutil.chown(folder, user)
    key, certificate = given_to("postgres", folder, lab.certificates.issue(lab.aws.cluster["Endpoint"]))
    data, environment = folder / "data", {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}
    programs = max(POSTGRES.iterdir(), key=lambda version: int(version.name)) / "bin"
    run([programs / "initdb", "-D", data, "-U", "admin", "--auth=trust", "--no-sync"], env=environment, user=user).ok()
    settings = ["ssl=on", f"ssl_cert_file={certificate}", f"ssl_key_file={key}", f"unix_socket_directories={folder}", "fsync=off"]
    options = [word for setting in settings for word in ("-c", setting)]
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n")
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
    """An API that allows nothing, with IAM's error texts."""

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
