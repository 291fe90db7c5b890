"""The command reads configuration files as the AWS CLI does: files of every form, compared with botocore's results."""

import http.server
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from harness import TARGET, Child, binary, clean_environment, equal, run

NEEDS = ["boto3"]

SECRET = "wJalrXUtnFEMI"
PROCESS = "echo '{\"Version\":1,\"AccessKeyId\":\"%s\",\"SecretAccessKey\":\"x\"}'"


def checks(suite):
    with Api() as api, botocore_reader() as reader:
        api.reader = reader
        for what, config, credentials, profile in CASES:
            suite.check(f"as botocore: {what}", compare, api, config, credentials, profile)
        suite.check("as botocore: 150 generated files", made_up, api)


def keys(name, region="eu-west-3", indent="", delimiter=" = "):
    pairs = {"aws_access_key_id": name, "aws_secret_access_key": SECRET, "region": region}
    return "".join(f"{indent}{key}{delimiter}{value}\n" for key, value in pairs.items())


CASES = [
    ("keys indented by blanks", "[default]\n" + keys("AKIA1", indent="    "), "", None),
    ("keys indented by a tab", "[profile dev]\n" + keys("AKIA1", indent="\t"), "", "dev"),
    ("a quoted name", '[profile "my dev"]\n' + keys("AKIA1"), "", "my dev"),
    ("a name in single quotes", "[profile 'my dev']\n" + keys("AKIA1"), "", "my dev"),
    ("an escaped blank", "[profile my\\ dev]\n" + keys("AKIA1"), "", "my dev"),
    ("colons", "[default]\n" + keys("AKIA1", delimiter=": "), "", None),
    ("no blanks around =", "[default]\n" + keys("AKIA1", delimiter="="), "", None),
    ("# in a name", "[profile a#b]\n" + keys("AKIA1"), "", "a#b"),
    ("commas and brackets in a name", "[profile [a,b]]\n" + keys("AKIA1"), "", "[a,b]"),
    ("umlauts in a name", "[profile Übergröße]\n" + keys("AKIA1"), "", "Übergröße"),
    ("a comment after a section", "[profile a] # mine\n" + keys("AKIA1"), "", "a"),
    ("capital keys", "[default]\n" + keys("AKIA1").upper().replace("EU-WEST-3", "eu-west-3"), "", None),
    ("carriage returns", "[default]\n" + keys("AKIA1").replace("\n", "\r\n"), "", None),
    ("inherited keys", "[DEFAULT]\n" + keys("AKIA1") + "[profile a]\noutput = json\n", "", "a"),
    ("a block of a service", "[default]\ns3 =\n  x = 1\n\n  y = 2\n" + keys("AKIA1"), "", None),
    ("keys in the other file", "[profile a]\nregion = eu-west-3\n", "[a]\n" + keys("AKIA2"), "a"),
    ("a name with a blank in the other file", "", "[a b]\n" + keys("AKIA2"), "a b"),
    ("both files", "[profile a]\n" + keys("AKIA1"), "[a]\n" + keys("AKIA2", region="us-west-2"), "a"),
    ("a process", f"[default]\nregion = eu-west-3\ncredential_process = {PROCESS % 'AKIA3'}\n", "", None),
    ("a process and keys", f"[default]\ncredential_process = {PROCESS % 'AKIA3'}\n" + keys("AKIA1"), "", None),
    ("keys in the other file before a process", f"[default]\ncredential_process = {PROCESS % 'AKIA3'}\n",
     "[default]\n" + keys("AKIA2"), None),
    ("characters of a shell in a process",
     "[default]\nregion = eu-west-3\ncredential_process = printf %s "
     "'{\"Version\":1,\"AccessKeyId\":\"A;B|C#D$E\",\"SecretAccessKey\":\"x\"}' ; # y\n".replace(" ; # y", ""), "", None),
]  # fmt: skip


def compare(api, config, credentials, profile):
    """Checks that both sign with the same key for the same region. Returns False for files that botocore rejects."""
    with files(config, credentials) as environment:
        expected = of_botocore(api.reader, environment, profile)
        if expected is None:
            return False
        options = ["--profile", profile] if profile else []
        command = [binary(), "exec", *options, "--endpoint-url", api.url, TARGET, "--", "true"]
        ended = run(command, env=clean_environment(environment))
        got = api.last()
        assert got, f"the API was not called: {ended.stderr}; {config!r} {credentials!r}"
        equal((config, credentials, profile, got), (config, credentials, profile, expected))
    return True


# botocore reads the environment of its process, which all suites share. Therefore it runs in a separate process.
READER = """
import json, os, re, sys
import botocore.exceptions, botocore.session

before = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
for line in sys.stdin:
    environment, profile = json.loads(line)
    os.environ.clear()
    os.environ.update({**before, **environment})
    answer = None
    try:
        session = botocore.session.Session(profile=profile)
        credentials = session.get_credentials()
        region = session.get_config_variable("region")
        if credentials is not None and re.fullmatch("[a-zA-Z0-9-]+", region or ""):
            key = credentials.get_frozen_credentials().access_key
            # Values that are invalid in a header fail with both.
            answer = (key, region) if re.fullmatch("[!-~]+", key) else None
    except (botocore.exceptions.BotoCoreError, OSError, ValueError):
        pass
    print(json.dumps(answer), flush=True)
"""


@contextmanager
def botocore_reader():
    with Child([sys.executable, "-c", READER], stdin=subprocess.PIPE) as reader:
        yield reader
        reader.process.stdin.close()
        reader.finish()


def of_botocore(reader, environment, profile):
    reader.type(json.dumps([environment, profile]))
    answer = json.loads(reader.line())
    return answer and tuple(answer)


@contextmanager
def files(config, credentials):
    with tempfile.TemporaryDirectory(prefix="aws-files-") as folder:
        paths = {"AWS_CONFIG_FILE": config, "AWS_SHARED_CREDENTIALS_FILE": credentials}
        environment = {"AWS_EC2_METADATA_DISABLED": "true"}
        for name, text in paths.items():
            path = Path(folder, name.lower())
            path.write_bytes(text.encode())
            environment[name] = str(path)
        yield environment


def made_up(api):
    dice = random.Random(20261128)
    compared = sum(compare(api, *a_case(dice, number)) for number in range(150))
    assert compared >= 20, f"botocore reads only {compared} of them"


def a_case(dice, number):
    names = ["default", "a", "b c", "d#e", "f,g", "[h]", "ö"]
    wanted = dice.choice(names)

    def line(key, value):
        indent = dice.choice(["", "", " ", "\t", "    "])
        delimiter = dice.choice(["=", " = ", ":", ": ", " =", "\t=\t"])
        more = dice.choice(["", "", "\n", "\n# a comment\n", "\n   ; another\n", "\n\n"])
        return f"{indent}{dice.choice([key, key, key.upper()])}{delimiter}{value}{dice.choice(['', ' '])}\n{more}"

    def body(tag):
        lines = [line("aws_access_key_id", f"AKIA{tag}"), line("aws_secret_access_key", SECRET)]
        lines.append(line("region", dice.choice(["eu-west-3", "us-west-2"])))
        if dice.random() < 0.3:
            lines.append("s3 =\n  a = 1\n" + dice.choice(["", "\n", "  # b = 2\n"]) + "  c = 3\n")
        if dice.random() < 0.3:
            lines.append(line("credential_process", PROCESS % f"ASIA{tag}"))
        dice.shuffle(lines)
        return "".join(lines[: dice.choice([2, 3, 4, 5])])

    def section(name, config):
        if not config or name == "default":
            return f"[{name}]\n"
        quoted = dice.choice([f'"{name}"', f"'{name}'", name.replace(" ", "\\ ")])
        return dice.choice(["", "\n", "# x\n"]) + f"[profile {quoted}]" + dice.choice(["", " ", " # y"]) + "\n"

    def text(config):
        chosen = dice.sample(names, dice.choice([1, 2, 3]))
        if dice.random() < 0.8 and wanted not in chosen:
            chosen.append(wanted)
        return "".join(section(name, config) + body(f"{number}{config:d}{at}") for at, name in enumerate(chosen))

    return text(True), text(False) if dice.random() < 0.6 else "", wanted


class Api:
    """Refuses every call, and records the key and the region of the last one."""

    def __enter__(self):
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                found = re.search("Credential=(.*)/[0-9]{8}/([^/]*)/ssm/", self.headers["authorization"] or "")
                api.seen = found and found.groups()
                answer = json.dumps({"__type": "TargetNotConnected", "message": "no"}).encode()
                self.send_response(400)
                self.send_header("content-type", "application/x-amz-json-1.1")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.seen = None
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()

    def last(self):
        seen, self.seen = self.seen, None
        return seen
