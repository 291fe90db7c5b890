"""cp: copies from and to a node are exact, with every kind of failure on the way and every set of tools on the node."""

import contextlib
import hashlib
import os
import random
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path

from harness import PATIENCE, SEARCH_PATH, TARGET, Tool, also_end, binary, clean_environment, contains, equal, run, wait_until
from signed import control
from terminal import Terminal

NEEDS = ["boto3", "busybox", "diff"]

BIG_BYTES = 12_000_000
FAULTS = {
    "the service closes the WebSocket": ["close,nth=1500"],
    "messages are lost, arrive twice and overtake each other": [
        "drop,probability=0.005",
        "duplicate,nth=50",
        "reorder,probability=0.01",
    ],
    "connections are reset": ["reset,nth=2500"],
    "bits are changed": ["corrupt,nth=700"],
    "the agent processes messages twice": ["process-twice,probability=0.0003"],
    "sessions end": ["end,after=900ms,text=The session is over."],
}


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-copy-") as name:
        folder = Folder(Path(name))
        with Node() as node:
            suite.check("a tree of strange names is downloaded and uploaded, with times, permissions and links", tree, folder, node)
            suite.check("many small files", many, folder, node)
            suite.check("standard input and output", streams, folder, node)
            suite.check("destinations are those of scp and rsync", destinations, folder, node)
            suite.check("a file that can't be copied is reported in one line", refusals, folder, node)
            suite.check("a link from the node is never followed", links, folder, node)
            suite.check("zeros use no disk space on either side", sparse, folder, node)
            suite.check("a terminal shows a progress bar", bar, folder, node)
        suite.check("a partial file of another user is not changed", planted, folder)
        for what, faults in FAULTS.items():
            suite.check(f"exact, though {what}", faulty, folder, faults)
        suite.check("killed in the middle: the next copy continues, and repairs damaged pieces", killed, folder)
        suite.check("the agent stops reading the output while the session is disconnected", output_stops, folder)
        suite.check("a full disk on this machine", full_here, folder)
        suite.check("a full disk on the node", full_there, folder)
        if os.geteuid() == 0:
            suite.check("no permission on this machine or on the node", no_permission, folder)
        suite.check("a container of ECS", container, folder)
        suite.check("a node that sends false names writes nothing outside the destination", hostile, folder)
        suite.check("a node that lists a link in place of the source creates no link on this machine", link_for_source, folder)
        suite.check("an error before a session is lost is reported", lost_after_trouble, folder)
        for others in ({}, NO_DIGESTS):
            name = "without digests" if others else "with digests"
            suite.check(f"a session that is lost after the last step of an upload, {name}", lost_after_rename, folder, others)
        suite.check("a session that is lost before the digest of a stream", lost_before_digest, folder)
        suite.check("a file that is longer than it was listed is not truncated", grown, folder)
        suite.check("only busybox on the node", with_tools, folder, {}, True)
        suite.check("busybox without sha256sum: lengths only, with a warning", with_tools, folder, NO_DIGESTS, False)
        suite.check("a dd that can't read exactly", with_tools, folder, {"dd": NO_FULLBLOCK}, True)
        for tool in ("dd", "stat"):
            suite.check(f"a node without {tool}", lacking, folder, tool)


class Folder:
    """The source and the destination of a copy; each check has its own folder."""

    def __init__(self, path):
        self.path = path
        self.made = 0
        self.tree = path / "tree"
        self.big = path / "big"
        make_tree(self.tree)
        self.big.write_bytes(sample(BIG_BYTES))

    def place(self):
        self.made += 1
        place = self.path / f"place {self.made}"
        place.mkdir()
        return place


def sample(length):
    """Returns random bytes, and all sequences that the agent's filter damages."""
    content = bytearray(random.Random(7).randbytes(length))
    for at in range(0, length - 6, 997):
        content[at : at + 6] = b"\xef\xbf\xbd\xef\xef\xbf"
    content[-2:] = b"\xef\xbf"
    return bytes(content)


def make_tree(tree):
    inner = tree / " a\nb '\"$(touch x)`\\" / "-r" / "empty"
    inner.mkdir(parents=True)
    names = ["-rf", ".hidden", "new\nline\n", "tab\t*?[x]", "ünïcode€\U0001f600", "%s\\n", "\udcff\udcef\udcbf\udcbd"]
    for number, name in enumerate(names):
        path = os.fsencode(inner.parent) + b"/" + os.fsencode(name)
        Path(os.fsdecode(path)).write_bytes(sample(1000 * (number + 1)))
    (tree / "nothing").touch()
    (tree / "program").write_bytes(b"#!/bin/sh\n")
    (tree / "program").chmod(0o750)
    (tree / "exactly").write_bytes(sample(1 << 20))
    (tree / "one more").write_bytes(sample((1 << 20) + 1))
    os.symlink("program", tree / "link")
    os.symlink("/no where\n", tree / "dangling")
    os.utime(tree / "program", (1_000_000_000, 1_000_000_000))
    (tree / "nothing").chmod(0o400)
    os.utime(inner, (1_100_000_000, 1_100_000_000))
    inner.chmod(0o511)


class Node(Tool):
    """A local Session Manager whose node has these programs."""

    def __init__(self, *args, path=SEARCH_PATH):
        super().__init__("local", "--target", TARGET, *args, env={"PATH": path})
        wait_until("the local Session Manager", lambda: "Ctrl-C" in self.stderr)
        self.variables = dict(line.removeprefix("export ").split("=", 1) for line in self.lines_so_far())

    def cp(self, *args):
        return run([binary(), "cp", *args], env=clean_environment(self.variables))


def told(ended):
    ended.ok()
    return ended.stderr


def remote(path):
    return os.fsdecode(TARGET.encode() + b":" + os.fsencode(path))


def same(one, other):
    run(["diff", "-r", "--no-dereference", one, other], env=clean_environment()).ok()


def attributes(tree):
    """Permissions and times of all files and folders that are not links."""
    found = {}
    for path in sorted([tree, *tree.rglob("*")]):
        if not path.is_symlink():
            status = path.stat()
            found[path.relative_to(tree)] = (stat.S_IMODE(status.st_mode), int(status.st_mtime))
    return found


def leftovers(place):
    return [path for path in place.rglob(".aws-ssm-forward-*")]


def tree(folder, node):
    place = folder.place()
    contains(told(node.cp("-rp", remote(folder.tree), place)), "SHA-256 of each is the same")
    contains(told(node.cp("-rp", place / "tree", remote(place / "back"))), "SHA-256 of each is the same")
    for copy in (place / "tree", place / "back"):
        same(folder.tree, copy)
        equal(attributes(copy), attributes(folder.tree))
    equal(leftovers(place), [])


def many(folder, node):
    place = folder.place()
    for number in range(600):
        (place / "many" / str(number % 7)).mkdir(parents=True, exist_ok=True)
        (place / "many" / str(number % 7) / f"file {number} {'x' * 60}").write_bytes(sample(50 + number))
    node.cp("-r", remote(place / "many"), place / "down").ok()
    node.cp("-r", place / "many", remote(place / "up")).ok()
    same(place / "many", place / "down")
    same(place / "many", place / "up")


def streams(folder, node):
    place = folder.place()
    with open(place / "down", "wb") as down:
        command = [binary(), "cp", remote(folder.big), "-"]
        subprocess.run(command, stdout=down, env=clean_environment(node.variables), check=True, timeout=60)
    same(folder.big, place / "down")
    with open(folder.big, "rb") as up:
        command = [binary(), "cp", "-", remote(place / "up")]
        subprocess.run(command, stdin=up, env=clean_environment(node.variables), check=True, timeout=60)
    same(folder.big, place / "up")
    node.cp("-", remote(place / "empty")).ok()
    equal((place / "empty").stat().st_size, 0)
    contains(node.cp(remote("/proc/version"), "-").ok(), "Linux")


def destinations(folder, node):
    place = folder.place()
    (place / "d").mkdir()
    (place / "d/file").write_text("file")
    (place / "other").write_text("other")
    up = [(lambda path: path, remote), (remote, lambda path: path)]
    for number, (source, destination) in enumerate(up):
        base = place / f"way {number}"
        base.mkdir()
        # A source is copied into an existing directory. Another name is its new name. A slash means the contents.
        node.cp("-r", source(place / "d"), destination(base)).ok()
        node.cp("-r", source(place / "d"), destination(base / "named")).ok()
        node.cp("-r", source(f"{place}/d/"), destination(base / "d")).ok()
        node.cp(source(place / "other"), source(place / "d/file"), destination(f"{base}/new/")).ok()
        found = sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())
        equal(found, ["d/file", "named/file", "new/file", "new/other"])
        # An existing file keeps its permissions; a new file gets those of its source, reduced by the mask.
        (base / "d/file").chmod(0o604)
        (place / "other").chmod(0o666)
        node.cp(source(place / "other"), destination(base / "d/file")).ok()
        node.cp(source(place / "other"), destination(base / "fresh")).ok()
        # The same applies to directories.
        modes = [oct(stat.S_IMODE((base / name).stat().st_mode)) for name in ("d/file", "fresh", "new", "named")]
        equal(modes, ["0o604", *[oct(mode & ~mask()) for mode in (0o666, 0o777, (place / "d").stat().st_mode & 0o777)]])
        equal((base / "d/file").read_text(), "other")


def mask():
    current = os.umask(0o077)
    os.umask(current)
    return current


def refusals(folder, node):
    place = folder.place()
    (place / "d").mkdir()
    os.mkfifo(place / "pipe")
    for args, code, told in [
        ([remote(place / "no"), place], 1, "no: No such file or directory"),
        ([place / "no", remote(place)], 1, "no: No such file or directory"),
        ([remote(place / "d"), place], 1, "is a directory; add -r to copy it"),
        ([place / "d", remote(place)], 1, "is a directory; add -r to copy it"),
        ([remote(place / "pipe"), place / "x"], 1, "is not a regular file"),
        ([place / "pipe", remote(place / "x")], 1, "is not a regular file"),
        ([remote(folder.big), place / "no/x"], 1, "No such file or directory"),
        ([folder.big, remote(place / "no/x")], 1, "no/x: "),
        ([remote(folder.big), f"{folder.big}/"], 1, "is not a directory"),
        ([folder.big, remote(f"{folder.big}/")], 1, "is not a directory"),
        ([folder.big, folder.big, remote(place / "new")], 1, "need a directory"),
        ([folder.big, remote("/dev/full")], 1, "is not a regular file"),
        ([remote(folder.big), "/dev/full"], 74, "No space left on device"),
        ([folder.big, place], 2, "neither side is on a node"),
        (["ecs:prod/web", place], 2, "a local file of this name is ./ecs:prod/web"),
    ]:
        ended = node.cp(*args)
        equal((args, ended.code), (args, code))
        errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        equal(len(errors), 1)
        contains(errors[0], told)
    equal(sorted(path.name for path in place.iterdir()), ["d", "pipe"])
    # If one of several sources fails, the others are still copied.
    ended = node.cp(remote(place / "no"), remote(folder.tree / "program"), place / "d")
    equal((ended.code, (place / "d/program").exists()), (1, True))


def links(folder, node):
    place = folder.place()
    for name in ("evil/trap", "outside", "here"):
        (place / name).mkdir(parents=True)
    (place / "evil/trap/file").write_text("evil")
    (place / "here/trap").symlink_to(place / "outside")
    ended = node.cp("-r", remote(f"{place}/evil/"), place / "here")
    equal(ended.code, 1)
    contains(ended.stderr, "trap: is a symbolic link on this machine, which is not followed")
    equal(list((place / "outside").iterdir()), [])


def sparse(folder, node):
    place = folder.place()
    with open(place / "zeros", "wb") as zeros:
        zeros.truncate(30_000_000)
        zeros.seek(20_000_000)
        zeros.write(b"x")
    node.cp(remote(place / "zeros"), place / "down").ok()
    node.cp(place / "zeros", remote(place / "up")).ok()
    for name in ("down", "up"):
        same(place / "zeros", place / name)
        assert (place / name).stat().st_blocks * 512 < 5_000_000, name


def planted(folder):
    # At the real agent's pace, the partial file exists long enough for the check.
    with Node("--profile", "real") as node:
        place = folder.place()
        (place / "precious").write_text("precious")
        # An unfinished copy shows the name of the partial file.
        command = [binary(), "cp", "-", remote(place / "x")]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, env=clean_environment(node.variables))
        also_end(child)
        wait_until("a partial file", lambda: leftovers(place))
        equal(stat.S_IMODE(leftovers(place)[0].stat().st_mode), 0o600)
        child.communicate(timeout=60)
        equal((child.returncode, leftovers(place)), (0, []))
        for number, copy in enumerate([(remote(folder.big), place / "big"), (folder.big, remote(place / "big"))]):
            part = part_of(folder, node, place, copy)
            part.unlink()
            part.symlink_to(place / "precious")
            ended = node.cp(*copy)
            assert ended.code != 0, number
            equal((place / "precious").read_text(), "precious")
            part.unlink()


def output_stops(folder):
    place = folder.place()
    with Node("--fault", "rate,bytes=4000000,direction=down") as node:
        command = [binary(), "cp", "--sessions", "1", remote(folder.big), place / "big"]
        child = subprocess.Popen(command, env=clean_environment(node.variables))
        also_end(child)
        wait_until("a partial file", lambda: [path for path in leftovers(place) if path.stat().st_blocks > 2048])
        # From now on, no data arrives from the existing sessions. New sessions are not affected.
        control(node.variables, "stall", "direction=down")
        control(node.variables, "close")
        equal(child.wait(PATIENCE), 0)
    same(folder.big, place / "big")


def part_of(folder, node, place, copy):
    """Returns the partial file of a copy that was killed."""
    child = subprocess.Popen([binary(), "cp", "--sessions", "2", *copy], env=clean_environment(node.variables))
    also_end(child)
    wait_until("a partial file", lambda: [path for path in leftovers(place) if path.stat().st_blocks > 2048])
    child.kill()
    child.wait()
    equal((place / "big").exists(), False)
    # Data in transit still arrives on the node.
    [part] = leftovers(place)
    return part


def bar(folder, node):
    place = folder.place()
    environment = clean_environment({"TERM": "xterm", **node.variables})
    with Terminal([binary(), "cp", remote(folder.big), place / "x"], environment) as terminal:
        terminal.expect("of 11.44 MiB .*left")
        terminal.expect("SHA-256")
        equal(terminal.ended(), 0)
    same(folder.big, place / "x")


def faulty(folder, faults):
    place = folder.place()
    arguments = [word for fault in faults for word in ("--fault", fault)]
    with Node("--seed", "3", *arguments) as node:
        node.cp("-r", remote(folder.tree), remote(folder.big), place).ok()
        node.cp("-r", folder.tree, folder.big, remote(f"{place}/up/")).ok()
    for copy in (place, place / "up"):
        same(folder.tree, copy / "tree")
        same(folder.big, copy / "big")
    equal(leftovers(place), [])


def killed(folder):
    # The real agent's pace leaves time to kill the copy.
    with Node("--profile", "real") as node:
        for way in (lambda place: (remote(folder.big), place / "big"), lambda place: (folder.big, remote(place / "big"))):
            place = folder.place()
            part = part_of(folder, node, place, way(place))
            with open(part, "r+b") as damaged:
                damaged.seek(100)
                damaged.write(b"damaged")
            # The agent ends the processes that the killed copy left.
            ended = wait_until("the next copy", lambda: (lambda it: it.code == 0 and it)(node.cp(*way(place))))
            contains(ended.stderr, "were already present", hashlib.sha256(folder.big.read_bytes()).hexdigest())
            same(folder.big, place / "big")
            equal(leftovers(place), [])


def limited(command, env):
    """Runs a command with a limit of 3 MB per file. Exceeding the limit is an error and does not kill the command."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))

    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60, preexec_fn=limit, restore_signals=False
    )


def full_here(folder):
    place = folder.place()
    with Node() as node:
        ended = limited([binary(), "cp", remote(folder.big), place / "big"], clean_environment(node.variables))
    equal((ended.returncode, (place / "big").exists()), (74, False))
    contains(ended.stderr, "error: cannot write big: File too large")


def full_there(folder):
    place = folder.place()
    with contextlib.ExitStack() as stack:
        if mounted := small_disk(place, stack):
            with Node() as node:
                ended = node.cp(folder.big, remote(mounted / "big"))
            equal((ended.code, (mounted / "big").exists()), (1, False))
            contains(ended.stderr, "error: ", "big: No space left on device")


def small_disk(place, stack):
    """A file system of 3 MB, if the system allows its creation."""
    mounted = place / "disk"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", mounted], capture_output=True).returncode != 0:
        print("skip  copy: mounting a small file system is not permitted")
        return None
    stack.callback(subprocess.run, ["umount", mounted], check=True)
    return mounted


def no_permission(folder):
    place = folder.place()
    folder.path.chmod(0o755)
    (place / "private").write_text("private")
    (place / "private").chmod(0o600)
    (place / "d/closed").mkdir(parents=True, mode=0o755)
    (place / "d/closed").chmod(0o700)
    (place / "d/open").write_text("open")
    with Nobody() as node:
        ended = node.cp(remote(place / "private"), place / "x")
        equal(ended.code, 1)
        contains(ended.stderr, "private: Permission denied")
        ended = node.cp("-r", remote(place / "d"), place / "copy")
        equal((ended.code, (place / "copy/open").read_text()), (1, "open"))
        contains(ended.stderr, "d/closed: Permission denied")
        ended = node.cp(folder.tree / "program", remote(place / "x"))
        equal(ended.code, 1)
        contains(ended.stderr, "x: ", "denied")


class Nobody(Node):
    """A node whose sessions have few permissions."""

    def __init__(self):
        environment = clean_environment({"HOME": "/"})
        # Other users may have no access to the build's folder.
        self.folder = tempfile.TemporaryDirectory(prefix="tests-copying-")
        Path(self.folder.name).chmod(0o755)
        program = shutil.copy(binary(), self.folder.name)
        super(Tool, self).__init__([program, "local", "--target", TARGET], env=environment, user="nobody")
        wait_until("the local Session Manager", lambda: "Ctrl-C" in self.stderr)
        self.variables = dict(line.removeprefix("export ").split("=", 1) for line in self.lines_so_far())


def container(folder):
    place = folder.place()
    with Node("--ecs-task", "prod/web/0123456789abcdef0123456789abcdef/app") as node:
        node.cp(f"ecs:prod/web/app:{folder.big}", place / "down").ok()
        node.cp(folder.big, f"ecs:prod/web:{place}/up").ok()
    same(folder.big, place / "down")
    same(folder.big, place / "up")


def tools(folder, others):
    """A directory with only busybox. `others` replaces some of its programs; `None` removes one."""
    path = folder.place()
    run([shutil.which("busybox"), "--install", "-s", path], env=clean_environment()).ok()
    for name, script in others.items():
        (path / name).unlink(missing_ok=True)
        if script:
            (path / name).write_text(script)
            (path / name).chmod(0o755)
    return path


NO_DIGESTS = {"sha256sum": None, "shasum": None, "openssl": None}
NO_FULLBLOCK = '#!/bin/sh\ncase "$*" in *fullblock*) exit 1;; esac\nexec /usr/bin/busybox dd "$@"\n'
# Each name refers to a place outside of the tree.
LIAR = '#!/bin/sh\nfor name; do :; done\nprintf "%s81a4 5 0 %s/../../escaped\\n" "${2%%%f*}" "$name"\n'


def with_tools(folder, others, has_digest):
    place = folder.place()
    with Node(path=tools(folder, others)) as node:
        down = told(node.cp("-rp", remote(folder.tree), remote(folder.big), place))
        up = told(node.cp("-rp", folder.tree, folder.big, remote(f"{place}/up/")))
    for copy, said in ((place, down), (place / "up", up)):
        contains(said, "SHA-256 of each is the same" if has_digest else "only lengths were compared")
        same(folder.tree, copy / "tree")
        same(folder.big, copy / "big")
        equal(attributes(copy / "tree"), attributes(folder.tree))


def lacking(folder, tool):
    place = folder.place()
    with Node(path=tools(folder, {tool: None})) as node:
        for copy in ((remote(folder.big), place), (folder.big, remote(place / "x"))):
            ended = node.cp(*copy)
            equal(ended.code, 1)
            contains(ended.stderr, f"error: the node lacks {tool}")
    equal(list(place.iterdir()), [])


def hostile(folder):
    place = folder.place()
    (place / "here").mkdir()
    with Node(path=tools(folder, {"stat": LIAR})) as node:
        ended = node.cp("-r", remote(folder.tree), place / "here")
    equal(ended.code, 1)
    contains(ended.stderr, "listed a path that is not below the source")
    equal([list((place / "here").iterdir()), (place / "escaped").exists()], [[], False])


# This node reports every path as a link.
LINK_LIAR = '#!/bin/sh\nfor name; do :; done\nprintf "a1ff 7 0 x%sL%s%sT/outside" "$m" "$name" "$m"\n'


def link_for_source(folder):
    place = folder.place()
    with Node(path=tools(folder, {"stat": LINK_LIAR})) as node:
        ended = node.cp(remote(folder.big), place / "site")
    equal(ended.code, 1)
    contains(ended.stderr, "lists a link in place of the source")
    equal(list(place.iterdir()), [])


def once(place):
    """Returns script text that ends all processes of the session, the first time only."""
    mark = shlex.quote(str(place / "ended"))
    return f'[ -e {mark} ] || {{ : >{mark}; kill -9 0; }}\n'


def lost_after_trouble(folder):
    place = folder.place()
    (place / "from").mkdir()
    (place / "to").mkdir()
    (place / "from/a").write_text("short")
    (place / "from/b").write_text("last")
    # The second file waits until the error of the first one has arrived at this machine, which the node cannot know.
    last = f'if [ "$text" = last ]; then sleep 1; {once(place)}fi\n'
    script = f'#!/bin/sh\ntext=$(/bin/cat)\n[ "$text" != short ] || exit\n{last}printf %s "$text"\n'
    with Node(path=tools(folder, {"cat": script})) as node:
        ended = node.cp("--sessions", "1", remote(place / "from/a"), remote(place / "from/b"), place / "to")
    assert (place / "ended").exists(), "no session was ended"
    equal(ended.code, 1)
    contains(ended.stderr, "from/a: changed while it was copied")
    equal([path.name for path in (place / "to").iterdir()], ["b"])


def lost_after_rename(folder, others):
    place = folder.place()
    move = f'#!/bin/sh\n/bin/mv "$@"\n{once(place)}'
    with Node(path=tools(folder, {**others, "mv": move})) as node:
        node.cp(folder.tree / "program", remote(place / "up")).ok()
    assert (place / "ended").exists(), "no session was ended"
    same(folder.tree / "program", place / "up")
    equal(sorted(path.name for path in place.iterdir()), ["ended", "up"])


def lost_before_digest(folder):
    place = folder.place()
    real = shutil.which("sha256sum", path=SEARCH_PATH)
    for source in (Path("/proc/version"), folder.tree / "program"):
        (place / "ended").unlink(missing_ok=True)
        with Node(path=tools(folder, {"sha256sum": f'#!/bin/sh\n{once(place)}exec {real} "$@"\n'})) as node:
            equal(node.cp(remote(source), "-").ok().strip(), source.read_text().strip())
        assert (place / "ended").exists(), "no session was ended"


def grown(folder):
    place = folder.place()
    listed = Path("/proc/kallsyms")
    assert len(listed.read_bytes()) > 1 << 20, "this system has no long file in /proc"
    with Node() as node:
        ended = node.cp(listed, remote(place / "x"))
    equal(ended.code, 1)
    contains(ended.stderr, "changed while it was copied")
    assert not (place / "x").exists()
