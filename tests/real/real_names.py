"""`run --real-names` with clients that verify the server's name, started with only that name."""

from harness import Tool, contains, equal


def ran(lab, *arguments, **variables):
    return Tool("run", *arguments, env={**lab.variables, **variables}).finish()


def address_of(name):
    """Returns a shell expression for the address to which the name resolves. No certificate contains this address."""
    return f"$(getent hosts {name} | cut -d' ' -f1)"


def mysql(lab, mariadb):
    name, port = lab.aws.database["Endpoint"]["Address"], lab.aws.database["Endpoint"]["Port"]
    client = f"mariadb --no-defaults --port={port} --user=admin --ssl-verify-server-cert --ssl-ca={lab.certificates.ca}"
    client += " --batch --skip-column-names --execute='SELECT 6*7' --host="
    by = lambda host: ran(lab, "rds:example-db", "--real-names", "--", "sh", "-c", client + host, MYSQL_PWD=mariadb.password)
    equal(by(name).ok().strip(), "42")
    by_address = by(address_of(name))
    assert by_address.code != 0, by_address.stdout
    contains(by_address.stderr.lower(), "certificate")


def postgres(lab):
    name, port = lab.aws.cluster["Endpoint"], lab.aws.cluster["Port"]
    settings = f"port={port} user=admin dbname=postgres sslmode=verify-full sslrootcert={lab.certificates.ca}"
    # Without libpq's variables, which also contain the tunnel's address.
    options = ["rds:reports", "--real-names", "--env", "none", "--", "sh", "-c"]
    by = lambda host: ran(lab, *options, f"psql \"host={host} {settings}\" -At -c 'SELECT 6*7'")
    equal(by(name).ok().strip(), "42")
    by_address = by(address_of(name))
    assert by_address.code != 0, by_address.stdout
    contains(by_address.stderr, "does not match host name")


def https(lab):
    name = lab.aws.domain
    options = ["opensearch:logs", "--target", lab.aws.node, "--real-names", "--", "sh", "-c"]
    by = lambda host: ran(lab, *options, f"curl --silent --show-error --cacert {lab.certificates.ca} https://{host}/")
    contains(by(name).ok(), "logs")
    equal(by(address_of(name)).code, 60)
