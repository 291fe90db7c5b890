#!/usr/bin/env bash
# Checks the invariants in ARCHITECTURE.md: the dependencies between crates, and words that may occur only in certain folders.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

failures=0

# fails WHAT [LINES]: prints and counts a failure.
fails() {
    printf 'FAIL  %s\n' "$1"
    printf '%s\n' "${2:-}" | sed 's/^/        /'
    failures=$((failures + 1))
}

# dependencies CRATE: prints the names of all dependencies of a crate, without dev-dependencies.
dependencies() {
    cargo tree --locked --package "$1" --edges normal --all-features --prefix none --format '{p}' |
        cut -d ' ' -f 1 | sort -u | grep -vx "$1"
}

# never_needs CRATE PATTERN: no dependency of CRATE may match PATTERN.
never_needs() {
    local needed found
    needed=$(dependencies "$1")
    found=$(grep -xE "$2" <<<"$needed" || true)
    if [[ -n $found ]]; then
        fails "$1 has a forbidden dependency" "$found"
    else
        echo "ok    $1 needs none of: $2"
    fi
}

# only_in FOLDER WORDS [PATH]: within FOLDER, only PATH may contain these words.
only_in() {
    local found where=nowhere
    [[ -n ${3:-} ]] && where="only in $3"
    found=$(grep -rnE --include '*.rs' -e "$2" "$1" | grep -v "^${3:-/}" || true)
    if [[ -n $found ]]; then
        fails "$1: /$2/ should be $where" "$found"
    elif [[ -n ${3:-} ]] && ! grep -rqE --include '*.rs' -e "$2" "$3"; then
        fails "/$2/ is not in $3 either: the check is outdated"
    else
        echo "ok    $1: /$2/ ${where}"
    fi
}

never_needs ssm-proto 'tokio.*|.*tungstenite.*|aws-.*|hyper.*|rustls.*|mio|socket2|rand|getrandom'
never_needs ssm-relay 'tokio.*|ssm-forward|ssm-local|serde.*|aws-.*|tracing'
never_needs ssm-forward 'ssm-local|aws-ssm-forward'
never_needs ssm-local 'ssm-forward|aws-ssm-forward'

only_in ssm-forward/src 'tokio_tungstenite' ssm-forward/src/transport/
only_in ssm-forward/src 'aws_sdk|aws_config' ssm-forward/src/provider/aws/
only_in cli/src 'ssm_proto::|tungstenite|aws_sdk|aws_config'
only_in cli/src '[Oo]utput_?[Ss]tream_?[Dd]ata|[Ii]nput_?[Ss]tream_?[Dd]ata|AgentMessage|[Ss]mux'
for folder in relay relay-programs ssm-proto ssm-forward ssm-local cli benches; do
    only_in "$folder/src" '\bunsafe\b *(\{|fn\b|impl\b|trait\b|extern\b)'
done

if ((failures)); then
    echo "$failures dependency rules are violated"
    exit 1
fi
