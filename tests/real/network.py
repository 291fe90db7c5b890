"""Company networks: squid, SOCKS servers, proxies that intercept TLS, private names."""

import contextlib
import hashlib
import json
import tempfile
from pathlib import Path

import namespaces
from harness import SEARCH_PATH, TARGET, Manager, Tool, aws_cli, binary, clean_environment, contains, equal, run, wait_until
from services import Upper, asked
from world import LOGIN, LOGIN_IN_URL, PRIVATE_API, PRIVATE_STREAM, REGION, Interceptor, Socks, Squid, World, seeing

NEEDS = ["root", "squid", "microsocks", "openssl", "unshare", "aws", "mitmdump", "ip"]

BYTES = b"through the proxy " * 20_000
SSM, MESSAGES = (f"{service}.{REGION}.amazonaws.com:443" for service in ("ssm", "ssmmessages"))


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-network-") as folder, contextlib.ExitStack() as stack:
        manager = stack.enter_context(Manager("--insecure-credentials", "any"))
        world = World(folder, manager)
        stack.callback(world.front.close)
        open_squid = stack.enter_context(Squid(world, "open"))
        squid = stack.enter_context(Squid(world, "login", login=True))
        tls_squid = stack.enter_context(Squid(world, "tls", login=True, encrypted=True))
        socks = stack.enter_context(Socks(world))
        login_socks = stack.enter_context(Socks(world, login=True))
        for what, proxy, variables in [
            ("squid: HTTPS_PROXY", open_squid, {"HTTPS_PROXY": open_squid.url()}),
            ("squid: https_proxy goes before HTTPS_PROXY", open_squid, {"https_proxy": open_squid.url(), "HTTPS_PROXY": "http://127.0.0.1:1"}),
            ("squid: ALL_PROXY", open_squid, {"ALL_PROXY": open_squid.url(), "NO_PROXY": "10.0.0.0/8,.example"}),
            ("squid: with a login", squid, {"HTTPS_PROXY": squid.url(LOGIN_IN_URL)}),
            ("squid: a login that is not required", open_squid, {"HTTPS_PROXY": open_squid.url(LOGIN_IN_URL)}),
            ("squid: over TLS, with a login", tls_squid, {"HTTPS_PROXY": tls_squid.url(LOGIN_IN_URL)}),
            ("SOCKS: socks5h", socks, {"ALL_PROXY": socks.url()}),
            ("SOCKS: socks5, a login that is not required", socks, {"HTTPS_PROXY": socks.url(LOGIN_IN_URL, "socks5")}),
            ("SOCKS: with a login", login_socks, {"HTTPS_PROXY": login_socks.url(LOGIN_IN_URL)}),
        ]:
            suite.check(f"{what}: a tunnel", tunnel, world, variables, proxy)
        for what, variables, parts in refusals(open_squid, squid, tls_squid, login_socks):
            suite.check(f"{what}: a clear error", refused, world, variables, *parts)
        namespaces.checks(suite, world)
        interceptor = stack.enter_context(Interceptor(world))
        suite.check("mitmproxy: without its authority, the error names the certificate's issuer", intercepted, world, interceptor)
        for what, trust in trusts(world, interceptor).items():
            suite.check(f"mitmproxy: {what}: a command", trusted, world, interceptor, *trust)
        suite.check("mitmproxy: a tunnel", tunnel, world, intercepting(interceptor), interceptor)
        suite.check("mitmproxy: the plugin under the AWS CLI", plugin, world, interceptor)
        suite.check("NO_PROXY: names, networks and ports are reached directly", no_proxy, world)
        for what, args, variables in private_endpoints(world):
            suite.check(f"a private network: {what}", private, world, args, variables)
        suite.check("the calls for credentials go through the proxy: STS", role, world, open_squid)
        suite.check("the calls for credentials go through the proxy: IAM Identity Center", identity_center, world, open_squid)


def refusals(open_squid, squid, tls_squid, socks):
    """The failures, and the parts of their error messages."""
    wrong = "user:wrong-secret"
    for kind, proxy in [("squid", squid), ("squid over TLS", tls_squid), ("SOCKS", socks)]:
        named = f"the proxy {'localhost' if proxy is tls_squid else '127.0.0.1'}:{proxy.port} (HTTPS_PROXY)"
        yield f"{kind}: no login", {"HTTPS_PROXY": proxy.url()}, [f"{named} requires a login"]
        yield f"{kind}: a wrong password", {"HTTPS_PROXY": proxy.url(wrong)}, [f"{named} refuses the user name or the password"]
    denied = {"HTTPS_PROXY": open_squid.url(), "AWS_ENDPOINT_URL_SSM": "https://ssm.corp.example"}
    yield "squid: a host that it does not allow", denied, ["does not allow a tunnel to ssm.corp.example:443 (HTTP 403)"]
    yield "a proxy that does not exist", {"all_proxy": "http://127.0.0.1:1"}, ["cannot reach the proxy 127.0.0.1:1 (all_proxy): Connection refused"]
    yield "SOCKS at squid", {"HTTPS_PROXY": f"socks5://127.0.0.1:{open_squid.port}"}, ["did not answer a request for ssm.eu-west-1.amazonaws.com:443 within "]


def forward(world, variables, port):
    arguments = ["forward", "--target", TARGET, "-o", "json", "-L", f"0:127.0.0.1:{port}"]
    return Tool(*arguments, env={**world.variables, **variables})


def tunnel(world, variables, proxy):
    with Upper() as service, forward(world, variables, service.port) as tool:
        equal(asked(tool.event("ready")["port"], BYTES), BYTES.upper())
        tool.stop().ok()
    if isinstance(proxy, Squid):
        # squid logs a tunnel when the tunnel ends.
        wait_until("squid's log", lambda: f"CONNECT {SSM}" in proxy.seen and f"CONNECT {MESSAGES}" in proxy.seen, 10)


def refused(world, variables, *parts):
    ended = Tool("exec", TARGET, "-vvv", "--", "true", env={**world.variables, **variables}).finish()
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    equal(len(errors), 1)
    contains(errors[0], *parts)
    for secret in ("wrong-secret", LOGIN[1]):
        assert secret not in ended.stderr, "a password was printed"
    equal(ended.code, 5)


def no_proxy(world):
    """The hosts in NO_PROXY are reached directly; the proxy does not answer."""
    for excepted in [f"*.{REGION}.amazonaws.com", "a.example, AMAZONAWS.COM:443", "*"]:
        executed(world, {"HTTPS_PROXY": "http://127.0.0.1:1", "no_proxy": excepted}, sees_names=True)


def executed(world, variables, sees_names=False, args=()):
    """Runs a command on the node."""
    prefix = seeing(world.hosts) if sees_names else []
    command = [*prefix, binary(), "exec", *args, TARGET, "--", "echo", "done here"]
    ended = run(command, env=clean_environment({**world.variables, **variables}))
    equal(ended.ok(), "done here")


def intercepting(interceptor):
    return {"HTTPS_PROXY": interceptor.url(), "AWS_CA_BUNDLE": str(interceptor.authority)}


def intercepted(world, interceptor):
    parts = [f"https://ssm.{REGION}.amazonaws.com", f"through the proxy 127.0.0.1:{interceptor.port} (HTTPS_PROXY)"]
    parts += ["signed by", "CN=mitmproxy", "intercepts TLS", "--ca-bundle", "AWS_CA_BUNDLE", "ca_bundle in the AWS profile"]
    refused(world, {"HTTPS_PROXY": interceptor.url()}, *parts)


def trusts(world, interceptor):
    """Every way to name the certificate authority: variables and options."""
    authority = str(interceptor.authority)
    profile = home(world, {"config": f"[default]\nca_bundle={authority}\n"})["HOME"]
    return {
        "AWS_CA_BUNDLE": [{"AWS_CA_BUNDLE": authority}],
        "ca_bundle of the profile": [{"AWS_CA_BUNDLE": "", "HOME": profile}],
        "--ca-bundle": [{}, "--ca-bundle", authority],
        "the system's store": [{"AWS_CA_BUNDLE": "", "SSL_CERT_FILE": authority}],
    }


def trusted(world, interceptor, variables, *args):
    executed(world, {"HTTPS_PROXY": interceptor.url(), **variables}, args=args)


def plugin(world, interceptor):
    folder = tempfile.mkdtemp(dir=world.folder)
    run([binary(), "plugin", "install", "--dir", folder], env=clean_environment()).ok()
    session = ["ssm", "start-session", "--target", TARGET, "--document-name", "AWS-StartNonInteractiveCommand"]
    variables = {**world.variables, **intercepting(interceptor), "PATH": f"{folder}:{SEARCH_PATH}"}
    variables |= {"AWS_PAGER": "", "AWS_DEFAULT_REGION": REGION}
    command = [aws_cli(), *session, "--parameters", json.dumps({"command": ["echo done here"]})]
    contains(run(command, env=clean_environment(variables)).ok(), "done here")


def private_endpoints(world):
    """The ways to name the endpoints of a private network."""
    api, stream = f"https://{PRIVATE_API}", f"https://{PRIVATE_STREAM}"
    none = {"AWS_ENDPOINT_URL_SSMMESSAGES": ""}
    yield "options", ["--endpoint-url", api, "--stream-endpoint", PRIVATE_STREAM], none
    yield "variables", [], {"AWS_ENDPOINT_URL_SSM": api, "AWS_ENDPOINT_URL_SSMMESSAGES": stream}
    services = f"[services private]\nssm =\n  endpoint_url = {api}\nssmmessages =\n  endpoint_url = {stream}\n"
    folder = home(world, {"config": f"[default]\nservices = private\n{services}"})["HOME"]
    yield "the profile's services", [], {**none, "HOME": folder}


def private(world, args, variables):
    before = len(world.front.seen)
    executed(world, variables, sees_names=True, args=args)
    equal(set(world.front.seen[before:]), {PRIVATE_API, PRIVATE_STREAM})


def home(world, files):
    """Returns variables that name AWS's configuration files."""
    folder = Path(tempfile.mkdtemp(dir=world.folder))
    for name, text in files.items():
        path = folder / ".aws" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    return {"HOME": str(folder), **keys}


def role(world, squid):
    key, secret = world.variables["AWS_ACCESS_KEY_ID"], world.variables["AWS_SECRET_ACCESS_KEY"]
    base = f"[profile base]\naws_access_key_id={key}\naws_secret_access_key={secret}\n"
    assumed = f"[default]\nsource_profile=base\nrole_arn=arn:aws:iam::123456789012:role/ops\nsts_regional_endpoints=regional\n{base}"
    executed(world, {**home(world, {"config": assumed}), "HTTPS_PROXY": squid.url()})
    wait_until("squid's log", lambda: f"CONNECT sts.{REGION}.amazonaws.com:443" in squid.seen, 10)


def identity_center(world, squid):
    start = "https://example.awsapps.com/start"
    profile = f"[default]\nsso_start_url={start}\nsso_region={REGION}\nsso_account_id=123456789012\nsso_role_name=ops\n"
    token = {"startUrl": start, "region": REGION, "accessToken": "a", "expiresAt": "2999-01-01T00:00:00Z"}
    cached = f"sso/cache/{hashlib.sha1(start.encode()).hexdigest()}.json"
    executed(world, {**home(world, {"config": profile, cached: json.dumps(token)}), "HTTPS_PROXY": squid.url()})
    wait_until("squid's log", lambda: f"CONNECT portal.sso.{REGION}.amazonaws.com:443" in squid.seen, 10)
