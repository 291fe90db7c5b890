"""Completion in real shells: the test types, presses Tab, and checks the shell's result."""

import shlex
import sys
import tempfile
from pathlib import Path

import harness
from harness import clean_environment, equal, run
from terminal import Terminal

NEEDS = ["bash", "zsh", "fish", "boto3"]

CONFIG = """
[default]
region = eu-central-1
[profile prod-admin]
region = eu-west-1
[profile prod-reader]
region = eu-west-1
[profile "my dev"]
region = eu-west-1
[profile sandbox]
region = us-east-1
"""

COMMANDS = ["up", "status", "completions", "cp", "demo", "doctor", "exec", "forward", "local", "ls", "plugin", "policy", "shell", "ssh-proxy", "token"]

TUNNELS = {
    ".config/aws-ssm-forward/config.toml": """
[tunnels.orders]
target = "i-0123456789abcdef0"
remote = 80
local = 0
lazy = true
groups = ["shop"]
[tunnels.order-archive]
target = "i-0123456789abcdef0"
remote = "archive.internal:80"
local = 0
groups = ["shop"]
""",
    "other.toml": '[tunnels.elsewhere]\ntarget = "i-1"\nremote = 80\n',
}

# The typed text, and words that must be offered. Other words may be offered too.
CASES = [
    ("", COMMANDS),
    ("forw", ["forward"]),
    ("ssh", ["ssh-proxy"]),
    ("forward --wait", ["--wait-ready"]),
    ("forward i-0123 --pay", ["--payload-size"]),
    ("forward -L 1:2 -o ", ["text", "json"]),
    ("forward --output j", ["json"]),
    ("forward --profile ", ["default", "my dev", "prod-admin", "prod-reader", "sandbox"]),
    ("forward --profile prod-", ["prod-admin", "prod-reader"]),
    ("shell --profile sand", ["sandbox"]),
    ("exec i-0123 --region eu-central-", ["eu-central-1", "eu-central-2"]),
    ("ssh-proxy --region us-gov-", ["us-gov-east-1", "us-gov-west-1"]),
    ("plugin un", ["uninstall"]),
    ("local --profile ", ["fast", "real"]),
    ("completions z", ["zsh"]),
    ("-", ["-v", "-h"]),
    ("--ver", ["--verbose", "--version"]),
    ("forward -L 8080:db.internal:80 --wait", ["--wait-ready"]),
    ("shell ecs:prod/web --reg", ["--region"]),
    ("up ", ["orders", "order-archive", "shop"]),
    ("up orders sh", ["shop"]),
    ("forward ord", ["orders", "order-archive"]),
    ("forward sho", []),
    ("run order-", ["order-archive"]),
    ("restart ord", []),
]

# Only words with this prefix may be offered.
EXACT = {"forw", "ssh", "forward --profile prod-", "exec i-0123 --region eu-central-", "plugin un", "completions z"}
EXACT |= {"up ", "up orders sh", "forward ord", "forward sho", "run order-", "restart ord"}


def checks(suite):
    with tempfile.TemporaryDirectory(prefix="tests-completion-") as name:
        home = Path(name)
        for path, text in TUNNELS.items():
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).write_text(text)
        (home / ".aws").mkdir()
        (home / ".aws/config").write_text(CONFIG)
        (home / "bin").mkdir()
        (home / "bin/aws-ssm-forward").symlink_to(harness.binary())
        (home / "runtime").mkdir(mode=0o700)
        path = f"{home}/bin:{harness.SEARCH_PATH}"
        check_all(suite, clean_environment({"HOME": name, "XDG_RUNTIME_DIR": f"{home}/runtime", "PATH": path}))


def check_all(suite, environment):
    for shell, ask in [("bash", bash), ("zsh", zsh), ("fish", fish)]:
        for typed, expected in CASES:
            what = f"{shell} completes 'aws-ssm-forward {typed}'"
            suite.check(what, completes, ask, environment, typed, expected)
        suite.check(f"{shell} completes a value after '='", completes_after_equals, ask, environment)
        suite.check(f"{shell} completes the tunnels of --config", of_another_file, ask, environment)
        suite.check(f"{shell} completes open tunnels", open_tunnels, ask, environment)
        suite.check(f"{shell} calls a program that is not in PATH by its path", not_in_path, ask, environment)
    for shell in ["bash", "zsh", "fish"]:
        suite.check(f"{shell} completes for a user at a terminal", at_a_terminal, shell, environment)
    suite.check("files that cannot be read cause no output", broken_files, environment)
    suite.check("every region in botocore is offered", every_region, environment)


def completes(ask, environment, typed, expected):
    offered = ask(environment, f"aws-ssm-forward {typed}")
    if typed in EXACT:
        equal(sorted(names(offered)), sorted(expected))
    missing = set(expected) - set(offered)
    assert not missing, f"{missing} is not offered, but {offered}"


def names(offered):
    """Returns the offered words without options, which are also offered where any word is allowed."""
    return [word for word in offered if not word.startswith("-")]


def completes_after_equals(ask, environment):
    offered = ask(environment, "aws-ssm-forward forward --profile=prod-")
    equal(sorted(word.removeprefix("--profile=") for word in offered), ["prod-admin", "prod-reader"])


def of_another_file(ask, environment):
    file = f"{environment['HOME']}/other.toml"
    for option in [f"--config {file}", f"--config={file}"]:
        equal(names(ask(environment, f"aws-ssm-forward up {option} ")), ["elsewhere"])


def open_tunnels(ask, environment):
    """Opens a lazy tunnel, which starts no session and needs no connection to AWS."""
    with harness.Tool("up", "orders", "--local", "-o", "json", env=environment) as up:
        up.event("waiting")
        for command in ["status", "logs", "down", "restart"]:
            equal(names(ask(environment, f"aws-ssm-forward {command} ")), ["orders"])


def not_in_path(ask, environment):
    elsewhere = {**environment, "PATH": harness.SEARCH_PATH}
    offered = ask(elsewhere, "aws-ssm-forward forward --profile sand", program=harness.binary())
    equal(offered, ["sandbox"])


BASH = r"""
source <("$1" completions bash)
line=$2
function=$(complete -p aws-ssm-forward | sed "s/.* -F \([^ ]*\) .*/\1/")
# Splits the line as readline does: '=' and ':' are separate words.
split=${line//=/ = }
read -ra words <<< "${split//:/ : }"
[[ $line == *" " ]] && words+=("")
COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 COMP_KEY=9
COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1))
"$function" aws-ssm-forward "${words[COMP_CWORD]}" "${words[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""

ZSH = r"""
compdef() { completer=$1 }
# Replaces the function that shows candidates. Its argument is the name of an array of value:description.
_describe() {
    local -a all=("${(@P)3}")
    # A colon in the value is escaped.
    local colon=$'\1'
    all=("${(@)all//\\:/$colon}")
    all=("${(@)all%%:*}")
    print -rl -- "${(@)all//$colon/:}"
}
source <("$1" completions zsh)
words=("${(@s: :)2}") CURRENT=${#words}
$completer
"""

FISH = r"""
source (%s completions fish | psub)
complete --do-complete "$argv[1]"
"""


def bash(environment, line, program="aws-ssm-forward"):
    done = run(["bash", "--norc", "-c", BASH, "bash", program, line], env=environment)
    # bash receives words as they would be typed.
    return [shlex.split(word)[0] for word in words(done.ok())]


def zsh(environment, line, program="aws-ssm-forward"):
    done = run(["zsh", "-f", "-c", ZSH, "zsh", program, line], env=environment)
    return words(done.ok())


def fish(environment, line, program="aws-ssm-forward"):
    done = run(["fish", "--no-config", "-c", FISH % program, line], env=environment)
    return words(done.ok())


def words(shown):
    """Returns the words without the descriptions, which fish prints after a tab."""
    return [line.split("\t")[0].strip() for line in shown.splitlines() if line.strip()]


# The command that starts each shell without the user's own files, and the lines that it reads before the script.
AT_A_TERMINAL = {
    "bash": (["bash", "--norc", "-i"], "PS1='next> '; source <(aws-ssm-forward completions bash)"),
    "zsh": (["zsh", "-f", "-i"], "PS1='next> '; autoload -Uz compinit && compinit -u -D && source <(aws-ssm-forward completions zsh)"),
    "fish": (["fish", "--no-config", "-i"], "function fish_prompt; echo 'next> '; end; aws-ssm-forward completions fish | source"),
}


def at_a_terminal(shell, environment):
    start, prepare = AT_A_TERMINAL[shell]
    with Terminal(start, {**environment, "TERM": "xterm"}, columns=200) as terminal:
        terminal.enter(f"{prepare}; echo pre''pared")
        terminal.expect("prepared")
        # Text that is typed before the prompt may be lost.
        terminal.expect("next> ")
        # The only candidate is completed. After Enter, the command's result shows that the word is complete.
        terminal.type("aws-ssm-forward compl\tfis\t")
        terminal.enter("")
        terminal.expect("--command aws-ssm-forward")
        terminal.type("aws-ssm-forward forward --profile prod-\t\t")
        terminal.expect("prod-admin")
        terminal.expect("prod-reader")
        # A name with a space must remain one word; otherwise the rest would be rejected.
        terminal.type("\x15aws-ssm-forward shell i-1 --profile my\t--local")
        terminal.enter("")
        terminal.expect("--profile <NAME>.*cannot be used with.*--local")


def broken_files(environment):
    config = Path(environment["HOME"]) / "broken"
    config.write_text("[profile x\nregion\n")
    for ask in [bash, zsh, fish]:
        equal(ask({**environment, "AWS_CONFIG_FILE": str(config)}, "aws-ssm-forward shell --profile prod-"), [])


BOTOCORE = """
import botocore.session
session = botocore.session.get_session()
for partition in session.get_available_partitions():
    print(*session.get_available_regions("ssm", partition), sep="\\n")
"""


def every_region(environment):
    known = run([sys.executable, "-c", BOTOCORE], env=environment).ok().split()
    assert len(known) > 40, known
    offered = bash(environment, "aws-ssm-forward forward --region ")
    missing = {region for region in known if "fips" not in region} - set(offered)
    assert not missing, missing
