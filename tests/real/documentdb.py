"""DocumentDB: mongosh with the printed command line, through a tunnel to a mock of MongoDB's protocol from MongoDB's developers. moto
has no DocumentDB. DocumentDB's API is that of RDS, so a cluster of another engine replaces it."""

import asyncio
import contextlib
import os
import socket
import ssl
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import harness
from account import Aws, Certificates, Lab, tunnel
from harness import Child, Manager, contains, equal, run

NEEDS = ["boto3", "moto", "openssl", "mongosh", "mockupdb"]

# The mock's answer to every command. The protocol versions are those of a recent server.
ANSWER = {"ok": 1, "isWritablePrimary": True, "helloOk": True, "minWireVersion": 0, "maxWireVersion": 21, "version": "5.0.0"}


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-documentdb-") as name, Aws() as aws:
        with DocumentDb(aws) as api, Child([sys.executable, "-c", MOCK]) as mongo:
            mongo_port = int(mongo.line())
            hosts = [*aws.hosts(), "--host", f"{api.host}=127.0.0.1"]
            with Manager("--target", aws.node, *hosts) as manager:
                lab = Lab(aws, manager, Certificates(Path(name)))
                lab.variables["AWS_ENDPOINT_URL_RDS"] = api.url
                with encrypted(api.port, mongo_port, lab.certificates.issue(api.host)):
                    suite.check("mongosh with the printed command, with the authority verified", verified, lab)
                    suite.check("mongosh refuses another authority", refused, lab)


def verified(lab):
    with tunnel(lab, "rds:docs", "--target", lab.aws.node) as client:
        contains(client.command, "--tlsCAFile", "retryWrites=false")
        equal(mongosh(client.command).ok().strip(), "answered 1")


def refused(lab):
    with tunnel(lab, "rds:docs", "--target", lab.aws.node, "--rds-ca", str(lab.certificates.other)) as client:
        ended = mongosh(client.command)
        assert ended.code != 0, ended.stdout
        contains(ended.stdout + ended.stderr, "certificate")


def mongosh(command):
    """Runs mongosh without a user, because the mock has no users."""
    script = "print('answered', db.runCommand({ping: 1}).ok)"
    command = command.replace(" --username admin", "").replace("?", "?serverSelectionTimeoutMS=45000&")
    arguments = f'{command} --norc --quiet --eval "{script}"'
    # mongosh has its own Node.js, because its driver needs a newer version than Debian's.
    path = f"{harness.CHECKS}/node_modules/.bin:{harness.SEARCH_PATH}"
    return run(["sh", "-c", arguments], env={"PATH": path, "HOME": os.environ["TESTS_HOME"], "LC_ALL": "C.UTF-8"})


# The mock runs in a separate process: it uses select(2), which fails for descriptors from 1024 on, and other suites open many.
MOCK = f"""
import threading
from mockupdb import MockupDB
server = MockupDB()
print(server.run(), flush=True)
server.autoresponds(lambda request: request.ok(**{ANSWER}))
threading.Event().wait()
"""


class DocumentDb:
    """The API of DocumentDB: that of RDS, with the engine of one cluster replaced."""

    def __init__(self, aws):
        self._moto = aws.url
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        cluster = aws.client("rds").create_db_cluster(
            DBClusterIdentifier="docs", Engine="aurora-postgresql", Port=self.port, DBSubnetGroupName="g",
            MasterUsername="admin", MasterUserPassword="not-a-secret",
        )["DBCluster"]
        self.host = cluster["Endpoint"]

    def __enter__(self):
        moto = self._moto

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = 200, b""
                try:
                    with urllib.request.urlopen(urllib.request.Request(moto, body, dict(self.headers))) as got:
                        answer = got.read()
                except urllib.error.HTTPError as refusal:
                    status, answer = refusal.code, refusal.read()
                answer = answer.replace(b"<Engine>aurora-postgresql</Engine>", b"<Engine>docdb</Engine>")
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def encrypted(port, behind, certificate):
    """Serves TLS before a port. Uses one thread, because two threads must not use one TLS connection at the same time."""
    key, chain = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    loop = asyncio.new_event_loop()

    async def pump(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", port, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
