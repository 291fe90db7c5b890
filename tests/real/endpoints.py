"""AWS's endpoints in every partition: compares ours with those that the installed botocore computes from its data."""

import functools
import itertools
import json
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import binary, clean_environment, contains, run

NEEDS = ["boto3"]

# Every connection fails before it begins, and the error names its destination.
NOWHERE = {"HTTPS_PROXY": "none://x", "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
VARIANTS = list(itertools.product([False, True], repeat=2))
# A command that calls each service first; the key is the service's name in boto3.
COMMANDS = {
    "rds": ["ls", "rds"],
    "ecs": ["ls", "ecs"],
    "eks": ["forward", "eks:any"],
    "elasticache": ["forward", "elasticache:any"],
    "opensearch": ["forward", "opensearch:any"],
}


def checks(suite):
    partitions = loader().load_data("partitions")["partitions"]
    regions = [region for partition in partitions for region in regions_of(partition)]
    one_each = [regions_of(partition)[-1] for partition in partitions]
    suite.check(f"SSM in {len(regions)} regions, with FIPS and dual-stack", same, ["ls"], "ssm", regions)
    for service, command in COMMANDS.items():
        suite.check(f"{service} in {len(one_each)} partitions, with FIPS and dual-stack", same, command, service, one_each)
    suite.check("the data channel's hosts in each partition get the token", stream_hosts, partitions)


def regions_of(partition):
    return [region for region in partition["regions"] if not region.endswith("-global")]


def same(command, service, regions):
    cases = [(region, *variant) for region in regions for variant in VARIANTS]
    wanted = [of_botocore(service, *case) for case in cases]
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda case: ours(command, *case), cases))
    differences = [row for row in zip(cases, got, wanted) if row[1] != row[2]]
    assert not differences, f"region, FIPS, dual-stack; ours; botocore's: {differences}"


def of_botocore(service, region, fips, dual_stack):
    """Returns botocore's endpoint, or None if botocore has none."""
    from botocore.exceptions import EndpointProviderError

    try:
        return rules(service).resolve_endpoint(Region=region, UseFIPS=fips, UseDualStack=dual_stack).url
    except EndpointProviderError:
        return None


@functools.cache
def rules(service):
    """Returns the provider that botocore's clients use to resolve the endpoint of each call."""
    from botocore.endpoint_provider import EndpointProvider

    return EndpointProvider(loader().load_service_model(service, "endpoint-rule-set-1"), loader().load_data("partitions"))


@functools.cache
def loader():
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")


def ours(command, region, fips, dual_stack):
    variants = {"AWS_USE_FIPS_ENDPOINT": str(fips).lower(), "AWS_USE_DUALSTACK_ENDPOINT": str(dual_stack).lower()}
    ended = run([binary(), *command], env=clean_environment({**NOWHERE, "AWS_REGION": region, **variants}))
    found = re.search(r"cannot reach (\S+) for ", ended.stderr)
    return found and found[1]


def stream_hosts(partitions):
    with tempfile.TemporaryDirectory() as folder:
        run([binary(), "plugin", "install", "--dir", folder], env=clean_environment()).ok()
        plugin = Path(folder) / "session-manager-plugin"
        for partition in partitions:
            region, outputs = regions_of(partition)[0], partition["outputs"]
            for name in ("ssmmessages", "ssmmessages-fips", "vpce-0a-1.ssmmessages"):
                vpce = ".vpce" if name.startswith("vpce") else ""
                for suffix in (outputs["dnsSuffix"], outputs["dualStackDnsSuffix"]):
                    contains(opened(plugin, f"{name}.{region}{vpce}.{suffix}", region), "the proxy (HTTPS_PROXY)")
            contains(opened(plugin, f"ssmmessages.{region}.example.com", region), "does not get the session's token")


def opened(plugin, host, region):
    """Returns the plugin's output for a session whose data channel is at `host`."""
    session = {"SessionId": "s", "TokenValue": "t", "StreamUrl": f"wss://{host}/v1/data-channel/s?role=publish_subscribe"}
    request = json.dumps({"Target": "i-0123456789abcdef0"})
    command = [plugin, json.dumps(session), region, "StartSession", "", request]
    return run(command, env=clean_environment(NOWHERE)).stderr
