"""The Debian package and the wheel, which packaging/build creates: installed into new folders, and used there."""

import gzip
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from harness import SEARCH_PATH, clean_environment, contains, equal, packages, run
from terminal import Terminal

NEEDS = ["packages", "dpkg", "bash", "zsh", "fish", "man"]

ROOT = Path(__file__).resolve().parents[2]
NAME = "aws-ssm-forward"
PLUGIN = "session-manager-plugin"


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-packages-") as name:
        folder = Path(name)
        debian, wheel = Debian(folder / "debian"), Wheel(folder / "wheel")
        suite.check("the Debian package is installed", debian.install)
        suite.check("the Debian package: the command, and the plugin under its name", programs, debian.bin)
        suite.check("the Debian package: man pages, documents, licences", documents, debian.root / "usr/share")
        suite.check("the Debian package: bash, zsh and fish find its completions", debian.completions)
        suite.check("the Debian package: Amazon's plugin takes precedence until it is replaced; removal restores it", debian.beside_amazons)
        suite.check("the wheel is installed without an index", wheel.install)
        suite.check("the wheel: the command", runs, wheel.bin)
        suite.check("the wheel: man pages, completions, licences", wheel.documents)


def version():
    return run(["cargo", "pkgid", "--manifest-path", ROOT / "cli/Cargo.toml"], env=dict(os.environ)).ok().strip().rsplit("@")[-1].rsplit("#")[-1]


def runs(folder):
    environment = clean_environment({"PATH": f"{folder}:{SEARCH_PATH}"})
    equal(run([NAME, "--version"], env=environment).ok().strip(), f"{NAME} {version()}")
    contains(run([NAME, "demo", "--once", "--size", "1MiB"], env=environment).ok(), "SHA-256")


def programs(folder):
    runs(folder)
    equal(os.readlink(folder / PLUGIN), NAME)
    contains(run([PLUGIN], env=clean_environment({"PATH": f"{folder}:{SEARCH_PATH}"})).ok(), "plugin was installed successfully")


def documents(share, compressed=".gz"):
    for command in ["", "-forward", "-up", "-config-check", "-relay-status"]:
        page = share / f"man/man1/{NAME}{command}.1{compressed}"
        shown = run(["man", "--warnings", "-l", page], env={"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"})
        contains(shown.ok(), "NAME", "DESCRIPTION")
        equal(shown.stderr, "")
    licences = share / f"doc/{NAME}/THIRD-PARTY-LICENCES"
    text = licences.read_text() if licences.exists() else gzip.open(f"{licences}.gz", "rt").read()
    contains(text, "tokio 1.", "ratatui 0.", "zstd-sys", "Permission is hereby granted", "Apache License")


class Debian:
    def __init__(self, folder):
        self.folder = folder
        self.root = folder / "root"
        self.bin = self.root / "usr/bin"

    def dpkg(self, *arguments):
        # The maintainer scripts run on this machine, with the folder in the variable DPKG_ROOT.
        forced = ["--force-script-chrootless", "--force-not-root", "--force-depends"]
        return run(["dpkg", "--root", self.root, *forced, *arguments], env=dict(os.environ))

    def install(self):
        [package] = packages().glob("*.deb")
        for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "usr/local/bin"]:
            (self.root / folder).mkdir(parents=True)
        # Simulates that this machine's packages are installed there.
        shutil.copy("/var/lib/dpkg/status", self.root / "var/lib/dpkg/status")
        ended = self.dpkg("--install", package)
        ended.ok()
        assert "dependency problems" not in ended.stderr, ended.stderr
        listed = self.dpkg("--listfiles", NAME).ok().splitlines()
        for path in ["/usr/bin/aws-ssm-forward", "/usr/bin/session-manager-plugin", "/usr/share/man/man1/aws-ssm-forward.1.gz"]:
            assert path in listed, listed
        share = f"/usr/share/doc/{NAME}"
        for path in ["copyright", "examples/systemd/tunnels.service", "examples/systemd/tunnels.socket", "docs/tunnels.md", "docs/config.schema.json"]:
            assert any(line.startswith(f"{share}/{path}") for line in listed), (path, listed)
        # No file is in folders of other packages or of the administrator, and no file is writable for other users.
        assert not [path for path in listed if path.startswith(("/usr/local", "/etc", "/opt"))], listed
        for path in listed:
            path = self.root / path.lstrip("/")
            assert path.is_symlink() or not stat.S_IMODE(path.lstat().st_mode) & 0o7022, path

    def completions(self):
        home = self.folder / "home"
        (home / "runtime").mkdir(mode=0o700, parents=True)
        path = f"{self.bin}:{SEARCH_PATH}"
        environment = clean_environment({"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "runtime"), "PATH": path, "TERM": "xterm"})
        share = self.root / "usr/share"
        # The steps with which each shell loads the completions of a package.
        for start, prepare in [
            (["bash", "--norc", "-i"], f"PS1='next> '; source {share}/bash-completion/completions/{NAME}"),
            (["zsh", "-f", "-i"], f"PS1='next> '; fpath=({share}/zsh/vendor-completions $fpath); autoload -Uz compinit && compinit -u -D"),
            (["fish", "--no-config", "-i"], f"function fish_prompt; echo 'next> '; end; set -p fish_complete_path {share}/fish/vendor_completions.d"),
        ]:
            with Terminal(start, environment, columns=200) as terminal:
                terminal.enter(f"{prepare}; echo pre''pared")
                terminal.expect("prepared")
                terminal.expect("next> ")
                terminal.type(f"{NAME} compl\tfis\t")
                terminal.enter("")
                terminal.expect(f"--command {NAME}")

    def beside_amazons(self):
        local = self.root / "usr/local/bin"
        (local / PLUGIN).write_text("#!/bin/sh\necho Amazon\n")
        (local / PLUGIN).chmod(0o755)
        environment = clean_environment({"PATH": f"{local}:{self.bin}:{SEARCH_PATH}"})
        equal(run([PLUGIN], env=environment).ok().strip(), "Amazon")
        contains(run([NAME, "plugin", "install"], env=environment).ok(), "is now this program")
        contains(run([PLUGIN], env=environment).ok(), "plugin was installed successfully")
        self.dpkg("--remove", NAME).ok()
        equal(run([PLUGIN], env=environment).ok().strip(), "Amazon")
        # dpkg removes a folder with its last file.
        assert not self.bin.exists(), list(self.bin.iterdir())
        assert not (self.root / f"usr/share/doc/{NAME}").exists()


class Wheel:
    def __init__(self, folder):
        self.folder = folder
        self.bin = folder / "bin"

    def install(self):
        [wheel] = packages().glob("*.whl")
        environment = clean_environment()
        # The tests' pip is used, because installing a new one takes most of the time.
        run([sys.executable, "-m", "venv", "--without-pip", self.folder], env=environment).ok()
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.bin / "python"]
        run([*pip, "install", "--no-index", wheel], env=environment).ok()
        # The wheel has no plugin, which would take precedence over Amazon's in an active environment. `plugin install` adds it.
        assert not (self.bin / PLUGIN).exists()
        contains(run([*pip, "show", NAME], env=environment).ok(), f"Version: {version()}")

    def documents(self):
        share = self.folder / "share"
        documents(share, compressed="")
        for path in [f"bash-completion/completions/{NAME}", f"zsh/site-functions/_{NAME}", f"fish/vendor_completions.d/{NAME}.fish"]:
            contains((share / path).read_text(), NAME)
            # The script calls the program by its name, without a folder.
            assert str(packages().parent) not in (share / path).read_text(), path
        [licences] = self.folder.glob("lib/python*/site-packages/aws_ssm_forward-*.dist-info/licenses")
        equal(sorted(path.name for path in licences.iterdir()), ["LICENSE-APACHE", "LICENSE-MIT"])
