"""Named tunnels: the configuration files, `up` and the commands that control it, with curl as the local program."""

import base64
import http.server
import itertools
import json
import os
import signal
import socket
import stat
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema

from harness import Child, Manager, Tool, aws_cli, binary, clean_environment, contains, equal, run, wait_until
from terminal import Terminal

NEEDS = ["curl", "aws", "systemd-analyze", "systemd-socket-activate"]

PAGE = b"a private page"

NOBODY = 65534

# The escape sequence with which a program leaves the terminal's alternate screen.
LEAVE_SCREEN = r"\x1b\[\?1049l"


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-tunnels-") as name, Service() as service:
        home = Home(Path(name), service.port)
        suite.check("the schema and the reader accept and refuse the same documents", schema, home)
        suite.check("config init writes a file that config check accepts, once", init, home)
        suite.check("config init asks at a terminal, and accepts only answers that config check accepts", init_asks, home)
        suite.check("a project's file is found in a parent folder and merged with the user's", project, home)
        suite.check("forward NAME opens the tunnel of the file", forward_by_name, home)
        suite.check("a typo in a tunnel's name gets a suggestion", typo, home)
        suite.check("two tunnels on one address are refused before anything starts", conflict, home)
        suite.check("up: many tunnels; one fails without an effect on the others", many, home)
        suite.check("up: the reason of a tunnel's failure is shown until it is open", told, home)
        suite.check("up: a lazy tunnel has a session only while there are connections", lazy, home)
        suite.check("up: the live view on a terminal, its keys, and the restored terminal", live, home)
        suite.check("up: when the credentials expire", credentials, home)
        suite.check("up: a signal before the live view starts ends the command, and no other command waits for it", early_signal, home)
        suite.check("up: a second signal ends it immediately, and the terminal is restored", second_signal, home)
        suite.check("up -d, status, logs, restart, reload, down", background, home)
        suite.check("a second up names the process that has the tunnel, and reload leaves the tunnel there", second, home)
        suite.check("commands during a reload: each tunnel is open once, and the process stays", reloads, home)
        suite.check("only the user can access control sockets; stale ones are removed, another user's folder is refused", private, home)
        suite.check("`aws forward` is added and removed as an alias", aws_alias, home)
        suite.check("systemd accepts the units of the documentation", unit, home)
        suite.check("systemd listens, and starts the service with the first connection", activated, home)
        suite.check("up reports to systemd when the tunnels are open", systemd, home)


class Service:
    """A web service on loopback."""

    def __enter__(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("content-length", str(len(PAGE)))
                self.end_headers()
                self.wfile.write(PAGE)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()


class Home:
    """A user's folders. Each check writes its own configuration."""

    def __init__(self, folder, port):
        self.folder = folder
        self.port = port
        self.runtime = folder / "runtime"
        self.runtime.mkdir(mode=0o700)
        self.environment = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(self.runtime)}
        self.file = folder / ".config/aws-ssm-forward/config.toml"

    def write(self, text, path=None):
        path = path or self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def tunnels(self, **tunnels):
        """Returns the configuration of tunnels to the service; each value is the rest of the tunnel's table."""
        tables = [f'[tunnels.{name}]\nremote = {self.port}\n{rest}\n' for name, rest in tunnels.items()]
        self.write('[defaults]\ntarget = "i-0123456789abcdef0"\n' + "".join(tables))

    def tool(self, *args, **more):
        return Tool(*args, env={**self.environment, **more})

    def run(self, *args, **more):
        return run([binary(), *args], env=clean_environment({**self.environment, **more}))

    def status(self):
        return {tunnel["name"]: tunnel for tunnel in json.loads(self.run("status", "-o", "json").ok())}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def page(port):
    return run(["curl", "--silent", "--show-error", "--max-time", "20", f"http://127.0.0.1:{port}/"]).ok()


# Documents, and whether they are valid. Only the reader checks values.
DOCUMENTS = [
    ({}, True),
    ({"include": []}, True),
    ({"defaults": {"profile": "p", "sessions": 2, "wait-ready": True, "groups": ["a"]}}, True),
    ({"tunnels": {"a": {"remote": 80, "target": "i-1", "local": "unix:x", "lazy": True, "idle": "1m"}}}, True),
    ({"tunnels": {"a": {"remote": "rds:x", "parameters": {"a": "b", "c": 1, "d": True}, "document-name": "D"}}}, True),
    ({"tunnels": {"a": {"remote": 80, "target": "i-1", "allow-stream-host": ["a.b", "c.d"]}}}, True),
    ({"tunnels": {"a": {"remote": 80, "target": "i-1", "allow-stream-host": "a.b", "hold": 2.5}}}, True),
    ({"tunnel": {}}, False),
    ({"include": "x"}, False),
    ({"defaults": {"remote": 80}}, False),
    ({"defaults": {"kubeconfig": "x"}}, False),
    ({"tunnels": {"a": {"remot": 80}}}, False),
    ({"tunnels": {"a": 80}}, False),
    ({"tunnels": {"a b": {"remote": 80}}}, False),
    ({"tunnels": {"a": {"remote": 80, "target": "i-1", "wait-ready": "yes"}}}, False),
    ({"tunnels": {"a": {"remote": 80, "target": True}}}, False),
    ({"tunnels": {"a": {"remote": 80, "target": ["i-1"]}}}, False),
    ({"tunnels": {"a": {"remote": 80, "parameters": ["a=b"]}}}, False),
    ({"tunnels": {"a": {"remote": 80, "output": "json"}}}, False),
]


def schema(home):
    text = home.run("config", "schema").ok()
    schema = json.loads(text)
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    path = home.folder / "document.toml"
    for document, is_right in DOCUMENTS:
        home.write(toml(document), path)
        ended = home.run("config", "check", "--config", path)
        equal((document, validator.is_valid(document), ended.code), (document, is_right, 0 if is_right else 4))
    # The reader knows every key of the schema.
    keys = schema["properties"]["tunnels"]["additionalProperties"]["properties"]
    for key in keys:
        home.write(f"[tunnels.a]\nremote = 80\n\n[tunnels.b]\n{key} = [true]\n", path)
        contains(home.run("config", "check", "--config", path).stderr, f"wrong type for `{key}`")


def toml(value):
    """Converts a value to TOML, with inline tables only."""

    def inline(value):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {inline(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(inline(item) for item in value) + "]"
        return json.dumps(value)

    return "".join(f"{key} = {inline(item)}\n" for key, item in value.items())


def init(home):
    path = home.folder / "new/config.toml"
    contains(home.run("config", "init", "--config", path).stderr, "config check")
    ended = home.run("config", "check", "--config", path)
    ended.ok()
    contains(ended.stderr, "config.toml: read", "no tunnels are defined")
    again = home.run("config", "init", "--config", path)
    equal(again.code, 74)
    contains(again.stderr, "it exists already")


def init_asks(home):
    path = home.folder / "asked/config.toml"
    environment = clean_environment({**home.environment, "TERM": "xterm"})
    with Terminal([binary(), "config", "init", "--config", path], environment, columns=120) as terminal:
        for answer in [
            ("AWS profile", None, None, ""),
            ("Region", None, None, "eu-central-1"),
            ("Name of the tunnel", "my db", "expected letters", "my-db"),
            ("Destination", "db", "expected host:port", "db.internal:5432"),
            ("Managed node", "tag:x", "is not Key=Value", "tag:Role=bastion"),
            ("Local port", "99999", "above 65535", "15432"),
            ("Another tunnel", None, None, "y"),
            ("Name of the tunnel", "my-db", "there is a tunnel `my-db` already", "other"),
            ("Destination", None, None, "80"),
            ("Managed node", "", "`other` has no `target`", "${STAGE:-web}"),
            ("Local port", None, None, "0.0.0.0:8080"),
            ("Another tunnel", None, None, "n"),
        ]:
            give(terminal, *answer)
        equal(terminal.ended(), 0)
    equal(
        home.run("config", "check", "--config", path).ok().splitlines(),
        ["my-db: 15432:db.internal:5432 through tag:Role=bastion", "other: 0.0.0.0:8080:80 through web"],
    )
    folder = home.folder / "asked-project"
    folder.mkdir()
    inside = lambda *args: ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", folder, binary(), "config", *args]  # noqa: E731
    with Terminal(inside("init", "--project"), environment, columns=120) as terminal:
        for answer in [
            ("AWS profile", "${SECRET}", "cannot read the environment variable SECRET", "${AWS_PROFILE:-dev}"),
            ("Region", None, None, ""),
            ("Name of the tunnel", None, None, "db"),
            ("Destination", None, None, "db.internal:5432"),
            ("Managed node", None, None, "web"),
            ("Local port", "0.0.0.0:5432", "cannot listen on addresses that other machines reach", "unix:/tmp/s"),
        ]:
            give(terminal, *answer)
        terminal.expect("sockets only in its own folder")
        terminal.type(CLEAR)
        terminal.enter("unix:s")
        give(terminal, "Another tunnel", None, None, "n")
        equal(terminal.ended(), 0)
    checked = run(inside("check", "db"), env=environment)
    equal(checked.ok().strip(), f"db: unix:{folder}/s:db.internal:5432 through web")


# Removes the typed text.
CLEAR = "\x7f" * 30


def give(terminal, question, wrong, complaint, right):
    """Answers a question, first with an invalid answer."""
    terminal.expect(question)
    if complaint:
        terminal.enter(wrong)
        terminal.expect(complaint)
        terminal.type(CLEAR)
    if question == "Another tunnel":
        terminal.type(right)
    else:
        terminal.enter(right)


def project(home):
    inner = home.folder / "project/a/b"
    inner.mkdir(parents=True)
    home.write('[tunnels.web]\ntarget = "i-1"\nremote = 80\n', home.folder / "project/.aws-ssm-forward.toml")
    home.write("[tunnels.web]\nlocal = 8080\n")
    script = f'cd "{inner}" && exec "{binary()}" config check'
    ended = run(["sh", "-c", script], env=clean_environment(home.environment))
    equal(ended.ok().strip(), "web: 8080:80 through i-1")
    contains(ended.stderr, "project/.aws-ssm-forward.toml: read", "config.toml: read")
    home.write("[tunnels.web]\nendpoint-url = \"https://evil.example\"\n", home.folder / "project/.aws-ssm-forward.toml")
    ended = run(["sh", "-c", script], env=clean_environment(home.environment))
    equal(ended.code, 4)
    contains(ended.stderr, "`endpoint-url` is not allowed in a project's file", "2 | endpoint-url", "^^^^^^^^^^^^")


def forward_by_name(home):
    home.tunnels(web="local = 0")
    with home.tool("forward", "web", "--local", "-o", "json") as tunnel:
        equal(page(tunnel.event("ready")["port"]), PAGE.decode())
    # The command line takes precedence over the file.
    home.tunnels(web='local = 0\nhold = "no"')
    with home.tool("forward", "web", "--local", "--hold", "5s", "-o", "json") as tunnel:
        tunnel.event("ready")
    ended = home.run("forward", "web", "--local", "-o", "json")
    equal((ended.code, json.loads(ended.stdout)["kind"]), (4, "configuration"))
    contains(ended.stderr, "expected a duration", "6 | hold = \"no\"")


def typo(home):
    home.tunnels(orders="", other="")
    for command in (["forward", "ordres", "--local"], ["up", "ordres", "--local"], ["config", "check", "ordres"]):
        ended = home.run(*command)
        equal(ended.code, 2)
        contains(ended.stderr, "there is no tunnel `ordres`; did you mean `orders`? There are: orders, other")
    ended = home.run("statsu")
    equal(ended.code, 2)
    contains(ended.stderr, "status")


def conflict(home):
    port = free_port()
    home.tunnels(a=f"local = {port}", b=f'local = "*:{port}"')
    ended = home.run("up", "--local")
    equal(ended.code, 2)
    contains(ended.stderr, "`a` and `b` both listen on", "give one of them another `local`")
    equal(ended.stdout, "")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        home.tunnels(a=f"local = {other.getsockname()[1]}")
        ended = home.run("up", "--local")
        equal(ended.code, 3)
        contains(ended.stderr, "the tunnel `a`: ")


def many(home):
    metrics = free_port()
    home.tunnels(one="local = 0", two="local = 0", bad='local = 0\ndocument-name = "No-Such-Document"')
    with home.tool("up", "--local", "-o", "json", "--metrics", metrics) as tool:
        ready, retrying = {}, 0
        while len(ready) < 2 or retrying < 2:
            event = json.loads(tool.line())
            if event["event"] == "ready":
                ready[event["tunnel"]] = event["port"]
            if event["event"] == "retrying":
                equal(event["tunnel"], "bad")
                retrying += 1
        equal(sorted(ready), ["one", "two"])
        for port in ready.values():
            equal(page(port), PAGE.decode())
        text = run(["curl", "--silent", f"http://127.0.0.1:{metrics}/metrics"]).ok()
        for name in ready:
            contains(text, f'ssm_forward_connections_total{{forward="{name}"}} 1')
        contains(text, 'ssm_forward_sessions{forward="bad"} 0')
        status = home.status()
        equal([status[name]["state"] for name in ("one", "two")], ["ready", "ready"])
        # The tunnel may be in a new attempt at this moment.
        assert status["bad"]["state"] in ("retrying", "starting"), status["bad"]
        contains(status["bad"]["error"], "No-Such-Document")
    equal(home.status(), {})


class Refusal:
    """An API that refuses every call, until it is set to answer no more calls."""

    WHY = "on purpose"

    def __enter__(self):
        self.answers = threading.Event()
        self.answers.set()
        self._end = threading.Event()
        refusal = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                if not refusal.answers.is_set():
                    refusal._end.wait()
                    return
                body = json.dumps({"__type": "ValidationException", "message": refusal.WHY}).encode()
                self.send_response(400)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._server.shutdown()
        self._server.server_close()


def told(home):
    with Refusal() as api:
        home.tunnels(bad=f'local = 0\nendpoint-url = "{api.url}"')
        keys = {"AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}
        with home.tool("up", "-o", "json", **keys) as tool:
            contains(tool.event("retrying")["message"], api.WHY)
            api.answers.clear()

            def tried_again():
                status = home.status()["bad"]
                return status if (status["state"], status["restarts"] > 0) == ("starting", True) else None

            wait_until("the next attempt, which is not answered", tried_again)
            contains(tried_again()["error"], api.WHY)


def lazy(home):
    port = free_port()
    home.tunnels(web=f'local = {port}\nlazy = true\nidle = "1s"')
    with home.tool("up", "--local", "-o", "json") as tool:
        tool.event("waiting")
        equal(home.status()["web"]["session_id"], None)
        for _ in range(2):
            # The session ends when the idle time has passed since the last connection.
            with socket.create_connection(("127.0.0.1", port)):
                tool.event("ready")
                assert home.status()["web"]["session_id"]
            equal(page(port), PAGE.decode())
            equal(tool.event("waiting")["cause"], None)
            equal((home.status()["web"]["state"], home.status()["web"]["session_id"]), ("waiting", None))


def drawn(text):
    """Returns a pattern for words of the view, which does not write a blank again that is already on the screen."""
    return r"(?: |\x1b\[\d+;\d+H)".join(text.split())


def live(home):
    port = free_port()
    home.tunnels(orders=f"local = {port}")
    environment = clean_environment({**home.environment, "TERM": "xterm"})
    with Terminal([binary(), "up", "--local"], environment, columns=140) as terminal:
        terminal.expect("ADDRESS")
        terminal.expect(f"127.0.0.1:{port}")
        wait_until("the tunnel", lambda: home.status()["orders"]["state"] == "ready")
        equal(page(port), PAGE.decode())
        terminal.expect(drawn("next close: the data channel in about"))
        terminal.expect(drawn("an idle session ends after 20 min"))
        terminal.type("c")
        terminal.expect(r"\x1b\]52;c;" + base64.b64encode(f"127.0.0.1:{port}".encode()).decode())
        terminal.type("p")
        wait_until("the pause", lambda: home.status()["orders"]["state"] == "paused")
        terminal.type("p")
        wait_until("the tunnel again", lambda: home.status()["orders"]["state"] == "ready")
        terminal.type("q")
        terminal.expect(LEAVE_SCREEN)
        equal(terminal.ended(), 0)


def credentials(home):
    home.tunnels(orders="local = 0")
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 7200))
    with Manager() as manager:
        given = dict(manager.variables)
        keys = {"Version": 1, "AccessKeyId": given.pop("AWS_ACCESS_KEY_ID"), "SecretAccessKey": given.pop("AWS_SECRET_ACCESS_KEY"), "Expiration": end}
        answer, configuration = home.folder / "answer.json", home.folder / "aws-config"
        answer.write_text(json.dumps(keys))
        configuration.write_text(f"[default]\ncredential_process = cat {answer}\n")
        environment = {**home.environment, **given, "AWS_CONFIG_FILE": str(configuration), "TERM": "xterm"}
        with Terminal([binary(), "up"], clean_environment(environment), columns=140) as terminal:
            terminal.expect(drawn("credentials end in 1 h 59 min"))
            equal(home.status()["orders"]["credentials_end"], end)
            terminal.type("q")
            equal(terminal.ended(), 0)


def early_signal(home):
    home.tunnels(orders="local = 0")
    began, configuration = home.folder / "began", home.folder / "aws-config"
    configuration.write_text(f"[default]\nregion = eu-central-1\ncredential_process = sh -c 'touch {began}; exec sleep 30'\n")
    environment = clean_environment({**home.environment, "TERM": "xterm", "AWS_CONFIG_FILE": str(configuration)})
    with Terminal([binary(), "up"], environment) as terminal:
        wait_until("the question for credentials", began.exists)
        contains(home.run("status").stderr, "no tunnels are open")
        os.kill(terminal.program(), signal.SIGTERM)
        equal(terminal.ended(), 128 + signal.SIGTERM)


def second_signal(home):
    home.tunnels(orders="local = 0")
    environment = clean_environment({**home.environment, "TERM": "xterm"})
    with Terminal([binary(), "up", "--local"], environment) as terminal:
        terminal.expect("ADDRESS")
        program = terminal.program()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(program, number)
        terminal.expect(LEAVE_SCREEN)
        assert terminal.ended() in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def background(home):
    one, two, three = free_port(), free_port(), free_port()
    home.tunnels(one=f"local = {one}", two=f"local = {two}")
    contains(home.run("up", "-d", "--local").ok(), "one", "ready", f"127.0.0.1:{one}")
    try:
        before = home.status()
        # The process in the background has no terminal.
        equal(os.getsid(before["one"]["pid"]), before["one"]["pid"])
        equal(page(one) + page(two), 2 * PAGE.decode())
        equal(home.run("logs", "one").ok().count("one: Forwarding"), 1)
        assert "two:" not in home.run("logs", "one").ok()
        # A restart starts a new session.
        equal(home.run("restart", "one").ok(), "restarted: one")
        wait_until("a new session", lambda: home.status()["one"]["state"] == "ready" and home.status()["one"]["restarts"])
        assert home.status()["one"]["session_id"] != before["one"]["session_id"]
        equal(home.status()["two"]["session_id"], before["two"]["session_id"])
        # Only changed tunnels are restarted.
        home.tunnels(two=f"local = {two}", three=f"local = {three}")
        equal(home.run("reload").ok(), "opened: three; closed: one")
        wait_until("the new tunnel", lambda: home.status()["three"]["state"] == "ready")
        equal(home.status()["two"]["session_id"], before["two"]["session_id"])
        equal(page(three), PAGE.decode())
        equal(run(["curl", "--silent", f"http://127.0.0.1:{one}/"]).code, 7)
        home.write("[tunnels.x]\nno = 1\n")
        refused = home.run("reload")
        equal(refused.code, 4)
        contains(refused.stderr, "unknown key `no`")
        equal(page(two), PAGE.decode())
        typo = home.run("down", "tow")
        contains(typo.stderr, "`tow` is not open; did you mean `two`?")
        equal(home.run("down", "three").ok(), "closed: three")
        equal(list(home.status()), ["two"])
        with Child([binary(), "logs", "-f"], env=clean_environment(home.environment)) as following:
            wait_until("the lines so far", lambda: "two: Forwarding" in following.line())
            home.run("restart", "two").ok()
            wait_until("a new line", lambda: "two: Forwarding" in following.line())
    finally:
        home.run("down")
    wait_until("the end of the process", lambda: not list((home.runtime / "aws-ssm-forward").glob("*.sock")))
    equal(home.run("down").code, 2)


def second(home):
    home.tunnels(one="local = 0", two="local = 0")
    with home.tool("up", "one", "--local", "-o", "json") as first:
        first.event("ready")
        for command in (["up", "--local"], ["up", "-d", "--local"]):
            ended = home.run(*command)
            equal(ended.code, 3)
            contains(ended.stderr, f"the tunnel `one` is open already, in process {first.process.pid}")
        # Another tunnel may be open in another process; the commands control both processes.
        with home.tool("up", "two", "--local", "-o", "json") as other:
            other.event("ready")
            equal(sorted(home.status()), ["one", "two"])
    home.tunnels(one="local = 0")
    with home.tool("up", "--local", "-o", "json") as first:
        first.event("ready")
        home.tunnels(one="local = 0", two="local = 0")
        with home.tool("up", "two", "--local", "-o", "json") as other:
            other.event("ready")
            equal(home.run("reload").ok().splitlines(), ["nothing changed", "nothing changed"])
            pids = [(tunnel["name"], tunnel["pid"]) for tunnel in json.loads(home.run("status", "-o", "json").ok())]
            equal(sorted(pids), [("one", first.process.pid), ("two", other.process.pid)])


def reloads(home):
    home.tunnels(one="local = 0")
    with home.tool("up", "--local", "-o", "json") as tool:
        path = home.runtime / f"aws-ssm-forward/up-{tool.process.pid}.sock"

        def ask(request, **more):
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(str(path))
                stream.sendall(json.dumps({"request": request, **more}).encode() + b"\n")
                return json.loads(stream.makefile().readline())

        changes = itertools.count(1)

        def change(pool):
            """Runs several reloads at the same time after the only tunnel has changed."""
            tool.event("ready")
            home.tunnels(one=f'local = 0\nhold = "{next(changes)}s"')
            answers = [pool.submit(ask, "reload") for _ in range(3)]
            found = [ask("restart", names=["other"])["text"]]
            while not all(answer.done() for answer in answers):
                found.append(ask("restart", names=["other"])["text"])
            equal({answer.result()["answer"] for answer in answers}, {"done"})
            equal([tunnel["name"] for tunnel in json.loads(home.run("status", "-o", "json").ok())], ["one"])
            return found

        with ThreadPoolExecutor(3) as pool:
            # While the tunnel is replaced, no tunnel exists.
            wait_until("a command in between", lambda: any("no tunnels are open" in text for text in change(pool)))
        equal(tool.process.poll(), None)


def private(home):
    home.tunnels(one="local = 0")
    folder = home.runtime / "aws-ssm-forward"
    stale = folder / "up-1.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    with home.tool("up", "--local", "-o", "json") as tool:
        tool.event("ready")
        assert not stale.exists()
        equal(stat.S_IMODE(folder.stat().st_mode), 0o700)
        sockets = list(folder.glob("*.sock"))
        equal(len(sockets), 1)
        for path in sockets:
            equal(stat.S_IMODE(path.stat().st_mode), 0o600)
    folder.chmod(0o755)
    try:
        for command in (["up", "--local"], ["status"]):
            ended = home.run(*command)
            equal(ended.code, 4)
            contains(ended.stderr, "can be entered by others")
    finally:
        folder.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        try:
            ended = home.run("status")
            equal(ended.code, 4)
            contains(ended.stderr, "belongs to another user")
        finally:
            os.chown(folder, 0, 0)


def aws_alias(home):
    home.tunnels(orders="local = 0")
    own = "[toplevel]\nwhoami = sts get-caller-identity\n"
    path = home.folder / ".aws/cli/alias"
    home.write(own, path)
    environment = clean_environment(home.environment)
    aws = lambda *args: run([aws_cli(), *args], env=environment)  # noqa: E731
    contains(home.run("plugin", "install", "--alias").ok(), "`aws forward` is now")
    home.run("plugin", "install", "--alias").ok()
    contains(aws("forward", "-h").ok(), "Forward local ports to hosts", "--wait-ready")
    ended = aws("forward", "ordres", "--local")
    equal(ended.code, 2)
    contains(ended.stderr, "did you mean `orders`?")
    contains(home.run("plugin", "uninstall", "--alias").ok(), "removed the alias")
    equal(path.read_text(), own)
    assert "forward" not in aws("forward", "-h").stdout.split("\n")[0]
    equal(home.run("plugin", "uninstall", "--alias").code, 4)


def unit(home):
    root = Path(__file__).parents[2]
    blocks = [block.split("```")[0] for block in (root / "docs/tunnels.md").read_text().split("```ini\n")[1:]]
    paths = []
    for path in sorted((root / "examples/systemd").iterdir()):
        text = path.read_text()
        contains("\n".join(blocks), text)
        paths.append(home.folder / path.name)
        paths[-1].write_text(text.replace("/usr/bin/aws-ssm-forward", str(binary())))
    equal([path.name for path in paths], ["tunnels.service", "tunnels.socket"])
    equal(len(blocks), len(paths))
    ended = run(["systemd-analyze", "verify", "--user", *paths], env=clean_environment(home.environment))
    equal((ended.code, ended.stderr), (0, ""))


def activated(home):
    port, path = free_port(), home.folder / "passed.sock"
    home.tunnels(web=f"local = {port}", socket=f'local = "unix:{path}"')
    environment = clean_environment(home.environment)
    variables = [f"--setenv={name}={value}" for name, value in environment.items()]
    addresses = [f"--listen=127.0.0.1:{port}", f"--listen={path}"]
    command = ["systemd-socket-activate", *addresses, *variables, binary(), "up", "--local", "--plain"]
    activate = lambda *names: Child([*command, *names], env=environment)  # noqa: E731
    with activate() as tool:
        wait_until("systemd to listen", path.exists)
        equal(home.status(), {})
        # The connection that starts the service works, and so do others, also after a restart.
        equal(page(port), PAGE.decode())
        by_path = lambda: run(["curl", "--silent", "--unix-socket", path, "http://web/"]).ok()  # noqa: E731
        equal(by_path(), PAGE.decode())
        equal(home.run("restart", "web", "socket").ok(), "restarted: socket, web")
        equal((page(port), by_path()), (PAGE.decode(), PAGE.decode()))
        tool.stop().ok()
    # The creator of the socket removes it.
    assert path.exists()
    path.unlink()
    with activate("web") as tool:
        wait_until("systemd to listen", path.exists)
        assert run(["curl", "--silent", "--unix-socket", path, "http://web/"]).code != 0
        ended = tool.finish()
        equal(ended.code, 4)
        contains(ended.stderr, f"systemd has opened a socket on {path}, but no tunnel")


def systemd(home):
    home.tunnels(one="local = 0", two="local = 0\nlazy = true")
    path = home.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(30)
        told = ""
        with home.tool("up", "--local", NOTIFY_SOCKET=str(path)):
            deadline = time.monotonic() + 30
            while "READY=1" not in told or "2 of 2 tunnels open" not in told or "WATCHDOG=1" not in told:
                assert time.monotonic() < deadline, told
                told += notify.recv(4096).decode() + "\n"
        while "STOPPING=1" not in told:
            told += notify.recv(4096).decode() + "\n"
