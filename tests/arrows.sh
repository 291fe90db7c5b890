#!/usr/bin/env bash
# Checks the invariants in ARCHITECTURE.md: which crates depend on which, and which words occur only in certain places.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

failures=0

# fails WHAT [LINES]
fails() {
    printf 'FAIL  %s\n' "$1"
    printf '%s\n' "${2:-}" | sed 's/^/        /'
    failures=$((failures + 1))
}

# The names of all dependencies of a crate, without those of its tests.
dependencies() {
    cargo tree --locked --package "$1" --edges normal --all-features --prefix none --format '{p}' |
        cut -d ' ' -f 1 | sort -u | grep -vx "$1"
}

# never_needs CRATE PATTERN
never_needs() {
    local needed found
    needed=$(dependencies "$1")
    found=$(grep -xE "$2" <<<"$needed" || true)
    if [[ -n $found ]]; then
        fails "$1 depends on what it must not know" "$found"
    else
        echo "ok    $1 needs none of: $2"
    fi
}

# only_in ROOM WORDS [PATH]: within ROOM, only PATH has these words.
only_in() {
    local found where=nowhere
    [[ -n ${3:-} ]] && where="only in $3"
    found=$(grep -rnE --include '*.rs' -e "$2" "$1" | grep -v "^${3:-/}" || true)
    if [[ -n $found ]]; then
        fails "$1: /$2/ should be $where" "$found"
    elif [[ -n ${3:-} ]] && ! grep -rqE --include '*.rs' -e "$2" "$3"; then
        fails "/$2/ is not in $3 either: the check is out of date"
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
for room in relay relay-programs ssm-proto ssm-forward ssm-local cli benches; do
    only_in "$room/src" '\bunsafe\b *(\{|fn\b|impl\b|trait\b|extern\b)'
done

if ((failures)); then
    echo "$failures dependency rules are broken"
    exit 1
fi
