"""`ls` with moto: listed names can be used as targets; lists have one page or several."""

import json
import tempfile
from pathlib import Path

from account import REGION, Aws, Certificates, Lab, Refusing, run_tool
from harness import Manager, contains, equal

NEEDS = ["boto3", "moto", "openssl"]

TASK = "0123456789abcdef0123456789abcdef"
KINDS = {
    "rds": "databases of RDS",
    "elasticache": "caches of ElastiCache",
    "opensearch": "domains of OpenSearch Service",
    "eks": "Kubernetes clusters of EKS",
}


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-listing-") as name, Aws() as aws:
        with Manager("--target", aws.node, "--ecs-task", f"prod/web/{TASK}/app", "--ecs-task", f"prod/web/{TASK}/proxy") as manager:
            lab = Lab(aws, manager, Certificates(Path(name)))
            lab.variables["AWS_ENDPOINT_URL_ECS"] = manager.variables["AWS_ENDPOINT_URL"]
            suite.check("ls rds lists instances and clusters", databases, lab)
            suite.check("ls elasticache lists groups, clusters outside of groups, and serverless caches", caches, lab)
            suite.check("ls opensearch lists domains", domains, lab)
            suite.check("ls eks lists clusters, from all pages", clusters, lab)
            suite.check("ls ecs lists containers, by names that exec accepts", containers, lab)
            for kind, words in KINDS.items():
                suite.check(f"ls {kind} with an empty list names the region and the profile", nothing, lab, kind, words)
            for kind, permission in [("rds", "rds:DescribeDBClusters"), ("elasticache", "elasticache:DescribeReplicationGroups")]:
                suite.check(f"ls {kind} that is denied names the permission", denied, lab, kind, permission)


def listed(lab, kind):
    """Returns the rows by name, and checks that the table shows the same names."""
    rows = json.loads(run_tool(lab, "ls", kind, "-o", "json").ok())
    head, *lines = run_tool(lab, "ls", kind).ok().splitlines()
    equal(head.split(), ["NAME", "ENGINE", "STATUS", "ENDPOINT"])
    equal([line.split()[0] for line in lines], [row["name"] for row in rows])
    return {row["name"]: (row["engine"], row["status"], row["endpoint"]) for row in rows}


def databases(lab):
    instance, cluster = lab.aws.database["Endpoint"], lab.aws.cluster
    expected = {
        "rds:reports": ("aurora-postgresql", "available", f"{cluster['Endpoint']}:{cluster['Port']}"),
        "rds:example-db": ("mysql", "available", f"{instance['Address']}:{instance['Port']}"),
    }
    equal(listed(lab, "rds"), expected)


def caches(lab):
    client = lab.aws.client("elasticache")
    client.create_cache_cluster(CacheClusterId="memo", Engine="memcached", CacheNodeType="cache.t4g.micro", NumCacheNodes=1, Port=11211)
    found = listed(lab, "elasticache")
    primary = lab.aws.cache["NodeGroups"][0]["PrimaryEndpoint"]
    equal(found["elasticache:cache"], ("redis", "available", f"{primary['Address']}:{primary['Port']}"))
    equal(found["elasticache:memo"][0], "memcached")
    equal(found["elasticache:sessions"], ("valkey", "available", "sessions.example.cache.amazonaws.com:6379"))
    equal(len(found), 3)


def domains(lab):
    equal(listed(lab, "opensearch"), {"opensearch:logs": ("opensearch", "active", f"{lab.aws.domain}:443")})


def clusters(lab):
    host = lab.aws.kubernetes.removeprefix("https://").strip("/").lower()
    equal(listed(lab, "eks"), {"eks:prod": ("kubernetes", "active", f"{host}:443")})
    client = lab.aws.client("eks")
    # A page has 100 clusters.
    for number in range(100):
        client.create_cluster(name=f"team{number}", roleArn="arn:aws:iam::123456789012:role/eks", resourcesVpcConfig={"subnetIds": lab.aws.subnets})
    rows = json.loads(run_tool(lab, "ls", "eks", "-o", "json").ok())
    equal({row["name"] for row in rows}, {"eks:prod", *(f"eks:team{number}" for number in range(100))})


def containers(lab):
    rows = json.loads(run_tool(lab, "ls", "ecs", "-o", "json").ok())
    equal({row["target"] for row in rows}, {"ecs:prod/web/app", "ecs:prod/web/proxy"})
    equal({(row["task"], row["connection"]) for row in rows}, {(TASK, "online")})
    for row in rows:
        equal(run_tool(lab, "exec", row["target"], "--", "echo found").ok().strip(), "found")
    ended = run_tool(lab, "exec", "ecs:prod/web", "--", "true")
    equal(ended.code, 5)
    contains(ended.stderr, "several containers", "app", "proxy")


def nothing(lab, kind, words):
    ended = run_tool(lab, "ls", kind, "--region", "eu-west-1")
    equal((ended.code, ended.stdout), (0, ""))
    contains(ended.stderr, f"there are no {words} in eu-west-1")
    equal(json.loads(run_tool(lab, "ls", kind, "--region", "eu-west-1", "-o", "json").ok()), [])


def denied(lab, kind, permission):
    with Refusing() as url:
        ended = run_tool(lab, "ls", kind, more={f"AWS_ENDPOINT_URL_{kind.upper()}": url})
    equal((ended.code, len(ended.stderr.splitlines())), (5, 1))
    contains(ended.stderr, permission.split(":")[1], permission, REGION)
