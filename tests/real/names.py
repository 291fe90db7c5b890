"""Nodes and services by name: moto simulates AWS, `aws-ssm-forward local` simulates Session Manager, the services are real,
and each client is started with the command line that the tunnel prints."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import harness
import infrastructure
import real_names
from account import REGION, Aws, Certificates, Https, Lab, MariaDbWithTls, Postgres, Redis, Refusing, run_tool, shell, tunnel
from harness import Manager, contains, equal

NEEDS = ["boto3", "moto", "mariadbd", "mariadb-install-db", "mariadb", "openssl", "postgres", "psql", "redis-server", "redis-cli"]
NEEDS += ["kubectl", "curl", "checkov", "hcl-tools"]

# Features of IAM that parliament's tables do not contain: a condition, and the resources of an action.
NEWER = ["ssm:SessionDocumentAccessCheck for action ssm:StartSession", "ssmmessages:OpenDataChannel"]

# For each kind of target and service, the required content of its policy.
POLICIES = {
    "i-0123456789abcdef0 --shell": ["instance/i-0123456789abcdef0"],
    "mi-0123456789abcdef0 --shell": ["managed-instance/mi-0123456789abcdef0"],
    "tag:Role=bastion,Env=prod --shell": ["ssm:resourceTag/Role", "ssm:resourceTag/Env", "ssm:DescribeInstanceInformation"],
    "asg:workers --shell": ["ssm:resourceTag/aws:autoscaling:groupName", "workers", "ssm:DescribeInstanceInformation"],
    "bastion -L 3306:db.internal:3306": ["ssm:DescribeInstanceInformation", "AWS-StartPortForwardingSessionToRemoteHost"],
    "i-0123456789abcdef0 -L 8080:80": ["document/AWS-StartPortForwardingSession"],
    "ecs:prod/web/app --exec": ["ecs:ListTasks", "ecs:DescribeTasks", "arn:aws:ecs:"],
    "i-0123456789abcdef0 --ssh": ["document/AWS-StartSSHSession"],
    "i-0123456789abcdef0 rds:reports --db-user app": ["rds:DescribeDBClusters", "rds-db:connect", "/app"],
    "i-0123456789abcdef0 elasticache:cache": ["elasticache:DescribeReplicationGroups", "AWS-StartPortForwardingSessionToRemoteHost"],
    "i-0123456789abcdef0 opensearch:logs": ["es:DescribeDomain"],
    "i-0123456789abcdef0 eks:prod": ["eks:DescribeCluster"],
}


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
    for target in ["local", "tag:Name=local", "127.0.0.1", lab.aws.node]:
        suite.check(f"exec on {target}", executed, lab, target)
    suite.check("an unknown name is reported, with the region and the next step", no_name, lab)
    suite.check("--wait-connected waits for a name that no node has yet", awaited, lab)
    suite.check("an instance without an agent is reported with its id", unmanaged, lab)
    suite.check("a database that does not exist is reported", no_database, lab)
    suite.check("a denied lookup names the permission", denied, lab)
    suite.check("a token equals botocore's", token, lab)
    suite.check("a policy passes parliament, as JSON and as Terraform", policies, lab)
    suite.check("a policy cannot name an address; the error tells what to name instead", policy_of_address, lab)
    for arguments, parts in POLICIES.items():
        suite.check(f"policy {arguments}", policy, lab, arguments, parts)


def with_services(suite, lab, folder):
    with MariaDbWithTls(folder, lab) as mariadb:
        suite.check("rds: MySQL with the printed command, verified", mysql, lab, mariadb)
        suite.check("rds: MySQL with another certificate authority is refused", mysql_wrong_authority, lab, mariadb)
        suite.check("rds: MySQL under its real name, verified", real_names.mysql, lab, mariadb)
        suite.check("rds: a port in use is not chosen", port_taken, lab)
        suite.check("rds: a private login file with a token, removed at the end", login_file, lab)
    with Postgres(folder, lab):
        suite.check("rds: PostgreSQL with the printed command, verify-full", postgres, lab, "rds:reports", "Endpoint")
        suite.check("rds: the reader endpoint of a cluster, verify-full", postgres, lab, "rds:reports:reader", "ReaderEndpoint")
        suite.check("rds: PostgreSQL under its real name, verified", real_names.postgres, lab)
    with Redis(folder, lab):
        suite.check("elasticache: with the printed command, over TLS", redis, lab)
    with Https(lab, "kubernetes", {"gitVersion": "v1.30.0", "major": "1", "minor": "30"}):
        suite.check("eks: kubectl with the printed command and with --kubeconfig", kubernetes, lab, folder)
    with Https(lab, "opensearch", {"cluster_name": "logs"}):
        suite.check("opensearch: curl with the printed command, verified", opensearch, lab)
        suite.check("opensearch: curl under its real name, verified", real_names.https, lab)


def listed(lab):
    [node] = json.loads(run_tool(lab, "ls", "-o", "json").ok())
    equal((node["id"], node["address"], node["connection"]), (lab.aws.node, "127.0.0.1", "online"))
    # EC2 knows the tag that Systems Manager does not report.
    equal(node["name"], "bastion")
    head, row = run_tool(lab, "ls").ok().splitlines()
    assert head.startswith("ID") and head.index("CONNECTION") == row.index("online"), (head, row)


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
    contains(ended.stderr, "DescribeDBInstances", "rds:DescribeDBInstances", REGION)


def token(lab):
    """Compares the parts of both tokens that do not depend on the time of signing."""
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
    equal([finding for finding in lint(document) if not any(newer in finding for newer in NEWER)], [])
    # Proof that the linter finds errors.
    contains(str(lint(document.replace("ssm:StartSession", "ssm:StartSesion"))), "StartSesion")
    terraform = run_tool(lab, "policy", *arguments, "-o", "terraform").ok()
    contains(terraform, "$${aws:userid}")
    with tempfile.NamedTemporaryFile("w", suffix=".tf") as file:
        file.write(terraform)
        file.flush()
        infrastructure.parsed([file.name])
        infrastructure.formatted([file.name])


def policy_of_address(lab):
    ended = run_tool(lab, "policy", "10.0.0.5", "--shell")
    equal(ended.code, 2)
    contains(ended.stderr, "10.0.0.5", "instance id", "tag:Key=Value")


def lint(document):
    """Returns parliament's findings."""
    script = "import sys, json; from parliament import analyze_policy_string as lint; "
    script += "print(json.dumps([str(finding) for finding in lint(sys.stdin.read()).findings]))"
    python = [harness.CHECKS / "bin/python", "-W", "ignore", "-c", script]
    linted = subprocess.run(python, input=document, capture_output=True, text=True)
    equal(linted.returncode, 0)
    return json.loads(linted.stdout.splitlines()[-1])


def policy(lab, arguments, parts):
    document = run_tool(lab, "policy", *arguments.split()).ok()
    contains(document, *parts)
    equal([finding for finding in lint(document) if not any(newer in finding for newer in NEWER)], [])


def mysql(lab, mariadb):
    with tunnel(lab, "rds:example-db") as client:
        contains(client.command, "--ssl-ca", "VERIFY_CA", "--user=admin")
        # MariaDB's client reads the password from a variable.
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
        assert port not in (first.port, second.port), "the database itself uses the port on this machine"
        assert first.port != second.port


def login_file(lab):
    with tunnel(lab, "rds:example-db", "--iam-auth", "app") as client:
        path = Path(re.search(r"--defaults-extra-file=(\S+)", client.command).group(1))
        equal((path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777), (0o600, 0o700))
        contains(path.read_text(), "Action=connect&DBUser=app", f"port={client.port}")
        contains(shell(lab, f"mariadb --defaults-extra-file={path} --print-defaults").stdout, "--user=app")
        assert "X-Amz-Signature" not in Path(f"/proc/{client.tool.process.pid}/cmdline").read_text()
    assert not path.parent.exists(), "the login file was left behind"


def postgres(lab, name, endpoint):
    with tunnel(lab, name) as client:
        contains(client.command, "sslmode=verify-full", "hostaddr=127.0.0.1", f"host={lab.aws.cluster[endpoint]} ")
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
        # moto's certificate authority has not signed the server's certificate, and there is no token of EKS.
        command = client.command.replace("get pods", f"--certificate-authority={lab.certificates.ca} --token=x version --output=json")
        contains(shell(lab, command).stdout, "v1.30.0")
    config.write_text("apiVersion: v1\n")
    ended = run_tool(lab, "forward", "eks:prod", "--target", lab.aws.node, "--kubeconfig", str(config))
    equal(ended.code, 74)
    contains(ended.stderr, "was not written by this command")
    equal(config.read_text(), "apiVersion: v1\n")


def opensearch(lab):
    with tunnel(lab, "opensearch:logs", "--target", lab.aws.node) as client:
        contains(shell(lab, f"{client.command} --silent --show-error --cacert {lab.certificates.ca}").ok(), "logs")
