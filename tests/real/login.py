"""`--iam-auth` with real databases: MariaDB and PostgreSQL use the token as the user's password, so that the printed command line
logs in with the file that the tunnel wrote."""

import contextlib
import copy
import os
import re
import signal
import tempfile
from pathlib import Path

from account import Aws, Certificates, Lab, MariaDbWithTls, Postgres, shell
from harness import SEARCH_PATH, Manager, Tool, contains, equal, run, wait_until

NEEDS = ["boto3", "moto", "mariadbd", "mariadb-install-db", "mariadb", "openssl", "postgres", "psql", "faketime"]

FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-login-") as name, Aws() as aws:
        folder = Path(name)
        folder.chmod(0o755)
        with Manager("--target", aws.node, *aws.hosts()) as manager:
            lab = Lab(aws, manager, Certificates(folder))
            with MariaDbWithTls(folder, lab) as mariadb:
                suite.check("MySQL: the printed command logs in with the token", mysql, lab, mariadb)
                suite.check("run passes the login file to the command", handed_over, lab, mariadb)
                suite.check("the token is renewed before it expires, also after the machine slept", renewed, lab, folder)
                for number in [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]:
                    suite.check(f"{number.name} removes the login file", removed, lab, number)
                suite.check("a tunnel that fails leaves no login file", failed, lab)
            with Postgres(folder, lab, "hostssl all app 127.0.0.1/32 password"):
                suite.check("PostgreSQL: the printed command logs in with the token, verify-full", postgres, lab)
            suite.check("a database without IAM authentication is reported, with the command that enables it", disabled, lab)


@contextlib.contextmanager
def tunnel(lab, name="rds:example-db", **variables):
    with Tool("forward", name, "--iam-auth", "app", "-o", "json", env={**lab.variables, **variables}) as tool:
        tool.event("ready")
        yield Login(tool)


class Login:
    """A tunnel, its printed command line, and its login file."""

    def __init__(self, tool):
        self.tool = tool
        self.command = tool.event("client")["command"]
        self.path = Path(re.search(r"(?:--defaults-extra-file|PGPASSFILE)=(\S+)", self.command).group(1))
        equal((self.path.stat().st_mode & 0o777, self.path.parent.stat().st_mode & 0o777), (0o600, 0o700))

    @property
    def token(self):
        text = self.path.read_text()
        if self.path.name == "pgpass":
            return re.split(r"(?<!\\):", text.strip())[4].replace("\\:", ":").replace("\\\\", "\\")
        return re.search(r'password="(.*)"', text).group(1)


def mysql(lab, mariadb):
    with tunnel(lab) as login:
        contains(login.token, f"{lab.aws.database['Endpoint']['Address']}:", "/?Action=connect&DBUser=app&", "X-Amz-Expires=900")
        give_password(mariadb, login.token)
        said = shell(lab, f"{login.command} --execute='SELECT 6*7' --batch --skip-column-names").ok()
        # MariaDB's client reports on stdout that it needs no option for clear text.
        equal(said.splitlines()[-1], "42")
        give_password(mariadb, "another")
        contains(shell(lab, f"{login.command} --execute='SELECT 1'").stderr, "Access denied")


def give_password(mariadb, password):
    root = copy.copy(mariadb.direct)
    root.user, root.environment = "root", {"PATH": SEARCH_PATH}
    root.ask(f"CREATE OR REPLACE USER app@'127.0.0.1' IDENTIFIED BY '{password}'; GRANT ALL ON *.* TO app@'127.0.0.1'")


def handed_over(lab, mariadb):
    """The command's arguments and variables contain the path of the login file, and not the token."""
    script = "cat {login_file}; echo; tr '\\0' '\\n' </proc/self/environ; tr '\\0' '\\n' </proc/$PPID/cmdline; echo {login_file}"
    ended = Tool("run", "rds:example-db", "--iam-auth", "app", "--", "sh", "-c", script, env=lab.variables).finish()
    said = ended.ok()
    equal(said.count("X-Amz-Signature"), 1)
    path = Path(said.splitlines()[-1])
    equal((path.name, path.parent.exists()), ("client.cnf", False))


def renewed(lab, folder):
    """The wall clock jumps, but timers do not, as after the machine slept."""
    [library] = Path("/").glob(FAKETIME.removeprefix("/"))
    clock = folder / "clock"
    clock.write_text("+0")
    fake = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with tunnel(lab, **fake) as login:
        first = login.token
        clock.write_text("+11m")
        wait_until("a new token", lambda: login.token != first)
        date = lambda token: re.search(r"X-Amz-Date=\d+T(\d{2})(\d{2})", token).groups()
        minutes = lambda token: int(date(token)[0]) * 60 + int(date(token)[1])
        passed = (minutes(login.token) - minutes(first)) % (24 * 60)
        assert 11 <= passed <= 13, passed
        equal((login.path.stat().st_mode & 0o777, len(list(login.path.parent.iterdir()))), (0o600, 1))


def removed(lab, number):
    with tunnel(lab) as login:
        login.tool.stop(number).ok()
        assert not login.path.parent.exists(), "the login file was left behind"


def failed(lab):
    """No file may be left in the folder for temporary files."""
    with tempfile.TemporaryDirectory(prefix="tests-login-") as name:
        arguments = ["rds:example-db", "--iam-auth", "app", "-L", "1:2", "--target", "i-0123456789abcdef9"]
        ended = Tool("forward", *arguments, env={**lab.variables, "TMPDIR": name}).finish()
        assert ended.code in (3, 5), ended.stderr
        equal(os.listdir(name), [])


def postgres(lab):
    with tunnel(lab, "rds:reports") as login:
        as_admin = f"host={lab.aws.cluster['Endpoint']} hostaddr=127.0.0.1 port={lab.aws.ports['postgres']} user=admin dbname=postgres"
        sql = f"CREATE ROLE app LOGIN PASSWORD '{login.token}'"
        run(["psql", as_admin, "-q", "-c", sql], env={"PATH": SEARCH_PATH}).ok()
        contains(login.command, "sslmode=verify-full")
        equal(shell(lab, f"{login.command} -At -c 'SELECT current_user'").ok().strip(), "app")
        run(["psql", as_admin, "-q", "-c", "ALTER ROLE app PASSWORD 'another'"], env={"PATH": SEARCH_PATH}).ok()
        contains(shell(lab, f"{login.command} -w -c 'SELECT 1'").stderr, "password authentication failed")


def disabled(lab):
    rds = lab.aws.client("rds")
    common = {"MasterUsername": "admin", "MasterUserPassword": "not-a-secret", "DBSubnetGroupName": "g"}
    rds.create_db_instance(DBInstanceIdentifier="plain", DBInstanceClass="db.t4g.micro", Engine="mysql", AllocatedStorage=20, **common)
    for arguments in [["forward", "rds:plain", "--iam-auth", "app"], ["token", "rds:plain", "--user", "app"]]:
        ended = Tool(*arguments, env=lab.variables).finish()
        equal(ended.code, 5)
        contains(ended.stderr, "aws rds modify-db-instance --db-instance-identifier plain --enable-iam-database-authentication")
