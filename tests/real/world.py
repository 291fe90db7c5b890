"""A small network behind proxies: AWS's names with certificates of a test authority, squid, a SOCKS server.

For programs that are started with `seeing`, the names resolve to a loopback address. Requires root."""

import contextlib
import re
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

from database import free_port
from harness import Child, clean_environment, run, wait_until

REGION = "eu-west-1"
SERVICES = ["ssm", "ssmmessages", "sts", "portal.sso", "kms", "ecs"]
# Names as those of endpoints in a private network.
PRIVATE_API, PRIVATE_STREAM = (f"vpce-0a1b-2c.{service}.{REGION}.vpce.amazonaws.com" for service in ("ssm", "ssmmessages"))
NAMES = [*(f"{service}.{REGION}.amazonaws.com" for service in SERVICES), PRIVATE_API, PRIVATE_STREAM]
# The address of the names. The client's own rules for loopback only check the names.
ADDRESS = "127.0.77.1"
# mitmproxy has its own Python environment, because it pins packages that others need in newer versions.
MITMDUMP = Path(f"{sys.prefix}-mitmproxy") / "bin/mitmdump"
LOGIN = ("user", "pa ss:word")
LOGIN_IN_URL = "user:pa%20ss%3Aword"


def seeing(file, in_place_of="/etc/hosts"):
    """Returns the words before a command with which only this command sees another file in place of the system's."""
    return ["unshare", "--mount", "sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"', "sh", file, in_place_of]


class World:
    """The names, their certificates, and the server behind them."""

    def __init__(self, folder, manager):
        self.folder = Path(folder)
        self.folder.chmod(0o755)
        self.hosts = self.folder / "hosts"
        self.hosts.write_text(f"127.0.0.1 localhost\n{ADDRESS} {' '.join(NAMES)}\n")
        self.authority = Authority(self.folder, "Tests Root")
        self.front = Front(self.authority.certificate("front", NAMES), manager)
        self.variables = {
            **{name: manager.variables[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
            "AWS_REGION": REGION,
            # Replaces ws://127.0.0.1, which the local Session Manager returns.
            "AWS_ENDPOINT_URL_SSMMESSAGES": f"https://ssmmessages.{REGION}.amazonaws.com",
            "AWS_CA_BUNDLE": str(self.authority.file),
        }


class Authority:
    """A certificate authority."""

    def __init__(self, folder, name):
        self.folder = Path(folder)
        self.file, self._key = self.folder / "ca.pem", self.folder / "ca.key"
        arguments = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/O=Example/CN={name}"]
        openssl(*arguments, "-keyout", self._key, "-out", self.file)

    def certificate(self, stem, names):
        """Returns a PEM file with the certificate, the authority's certificate and the key."""
        key, request, cert = (self.folder / f"{stem}.{part}" for part in ("key", "csr", "crt"))
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={stem}")
        extensions = self.folder / f"{stem}.ext"
        of_names = [f"IP:{name}" if name.replace(".", "").isdigit() else f"DNS:{name}" for name in names]
        extensions.write_text(f"subjectAltName={','.join(of_names)}\n")
        signing = ["-CA", self.file, "-CAkey", self._key, "-CAcreateserial", "-days", "2", "-extfile", extensions]
        openssl("x509", "-req", "-in", request, "-out", cert, *signing)
        both = self.folder / f"{stem}.pem"
        both.write_text(cert.read_text() + self.file.read_text() + key.read_text())
        return both


def openssl(*arguments):
    run(["openssl", *arguments], env=clean_environment()).ok()


class Front:
    """Serves TLS under AWS's names. Forwards the calls of Session Manager to the local Session Manager; the services for
    credentials return its credentials."""

    def __init__(self, pem, manager):
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(pem)
        url = manager.variables["AWS_ENDPOINT_URL"]
        self._manager = url.removeprefix("http://")
        self._keys = (manager.variables["AWS_ACCESS_KEY_ID"], manager.variables["AWS_SECRET_ACCESS_KEY"])
        # The hosts of the received requests.
        self.seen = []
        self._listener = socket.create_server((ADDRESS, 443))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream):
        with contextlib.suppress(OSError), self._context.wrap_socket(stream, server_side=True) as client:
            head, rest = read_head(client)
            host = re.search(r"(?im)^host: ([^\r]*)", head)[1]
            self.seen.append(host)
            if "ssm" not in host:
                client.sendall(answer(credentials(host, *self._keys)))
                return
            # The local Session Manager accepts only loopback addresses as Host. One call per connection.
            head = re.sub(r"(?im)^host: [^\r]*", f"host: {self._manager}", head)
            if "upgrade:" not in head.lower():
                head = head.replace("\r\n", "\r\nconnection: close\r\n", 1)
            address, port = self._manager.split(":")
            with socket.create_connection((address, int(port))) as manager:
                manager.sendall(head.encode() + rest)
                relay(client, manager)

    def close(self):
        self._listener.close()


def read_head(stream):
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = stream.recv(1 << 16)
        if not chunk:
            raise OSError("hung up")
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode() + "\r\n\r\n", rest


def answer(body):
    return f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()


def credentials(host, key, secret):
    """The answers of STS and IAM Identity Center."""
    if host.startswith("sts."):
        inner = f"<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
        inner += "<SessionToken>t</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration>"
        return f"<AssumeRoleResponse><AssumeRoleResult><Credentials>{inner}</Credentials></AssumeRoleResult></AssumeRoleResponse>"
    return f'{{"roleCredentials":{{"accessKeyId":"{key}","secretAccessKey":"{secret}","sessionToken":"t","expiration":32503680000000}}}}'


def relay(one, other):
    """Copies in both directions until one side ends."""

    def copy(source, sink):
        with contextlib.suppress(OSError, ValueError):
            while chunk := source.recv(1 << 16):
                sink.sendall(chunk)
        for stream in (source, sink):
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=copy, args=(other, one), daemon=True)
    back.start()
    copy(one, other)
    back.join()


class Squid(Child):
    """squid, with or without a login, optionally over TLS. It refuses hosts other than AWS's."""

    def __init__(self, world, name, login=False, encrypted=False):
        self.folder = world.folder / f"squid-{name}"
        self.folder.mkdir()
        self.port = free_port()
        self.login = login
        self.scheme, self.host = ("https", "localhost") if encrypted else ("http", "127.0.0.1")
        certificate = world.authority.certificate(f"squid-{name}", ["localhost"]) if encrypted else None
        configuration = self.folder / "squid.conf"
        configuration.write_text(self._configuration(world, certificate))
        subprocess.run(["chown", "-R", "proxy", self.folder], check=True)
        if certificate:
            subprocess.run(["chown", "proxy", certificate], check=True)
        super().__init__(["squid", "-N", "-f", configuration], env=clean_environment())
        wait_until("squid to listen", lambda: listens(self.port))

    def _configuration(self, world, certificate):
        port = f"https_port 127.0.0.1:{self.port} tls-cert={certificate}" if certificate else f"http_port 127.0.0.1:{self.port}"
        lines = [
            *[port, f"hosts_file {world.hosts}", f"acl aws dstdomain .{REGION}.amazonaws.com"],
            *["pid_filename none", "cache deny all", "shutdown_lifetime 0 seconds", f"coredump_dir {self.folder}"],
            *[f"cache_log {self.folder}/cache.log", f"access_log stdio:{self.folder}/access.log", "netdb_filename none"],
        ]
        if self.login:
            hashed = run(["openssl", "passwd", "-apr1", LOGIN[1]], env=clean_environment()).ok().strip()
            passwords = self.folder / "passwords"
            passwords.write_text(f"{LOGIN[0]}:{hashed}\n")
            lines += [f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {passwords}"]
            lines += ["acl known proxy_auth REQUIRED", "http_access deny !known"]
        return "\n".join([*lines, "http_access allow aws", "http_access deny all", ""])

    def url(self, login=None):
        return proxy_url(self.scheme, self.host, self.port, login)

    @property
    def seen(self):
        """The tunnels that clients requested."""
        return (self.folder / "access.log").read_text()


class Socks(Child):
    """microsocks, with or without a login."""

    def __init__(self, world, login=False):
        self.port = free_port()
        more = ["-u", LOGIN[0], "-P", LOGIN[1]] if login else []
        arguments = ["microsocks", "-i", "127.0.0.1", "-p", self.port, *more]
        super().__init__([*seeing(world.hosts), *arguments], env=clean_environment())
        wait_until("microsocks to listen", lambda: listens(self.port))

    def url(self, login=None, scheme="socks5h"):
        return proxy_url(scheme, "127.0.0.1", self.port, login)


def proxy_url(scheme, host, port, login):
    return f"{scheme}://{login + '@' if login else ''}{host}:{port}"


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


class Interceptor(Child):
    """mitmproxy: it intercepts TLS with certificates of its own authority."""

    def __init__(self, world):
        self.port = free_port()
        folder = world.folder / "mitmproxy"
        self.authority = folder / "mitmproxy-ca-cert.pem"
        options = [f"confdir={folder}", f"ssl_verify_upstream_trusted_ca={world.authority.file}"]
        settings = [part for option in options for part in ("--set", option)]
        command = [MITMDUMP, "-q", "--listen-host", "127.0.0.1", "-p", self.port, *settings]
        super().__init__([*seeing(world.hosts), *command], env=clean_environment())
        wait_until("mitmproxy to listen", lambda: listens(self.port) and self.authority.exists())

    def url(self):
        return proxy_url("http", "127.0.0.1", self.port, None)
