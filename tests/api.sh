#!/usr/bin/env bash
# Compares the public interfaces of the three libraries with the texts in tests/api/, so that every change is noticed.
#
#     tests/api.sh            fails and prints the difference if they differ
#     tests/api.sh --write    writes the texts
#
# Requires cargo-public-api (cargo install cargo-public-api --version 0.52.0 --locked). Version 0.52.0 reads the format of Rust 1.95.
# rustdoc's JSON is not stable yet. With RUSTC_BOOTSTRAP a stable toolchain creates it, so that no nightly toolchain is needed. The
# variable is set only for rustdoc, because with the variable cargo would build all dependencies again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

write=false
case ${1:-} in
    '') ;;
    --write) write=true ;;
    *)
        echo "usage: tests/api.sh [--write]" >&2
        exit 2
        ;;
esac
if ! command -v cargo-public-api >/dev/null; then
    echo "cargo-public-api is not installed; install it with: cargo install cargo-public-api --version 0.52.0 --locked" >&2
    exit 1
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
printf '#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc "$@"\n' >"$folder/rustdoc"
chmod +x "$folder/rustdoc"
target=$(cargo metadata --format-version=1 --no-deps --locked |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
RUSTDOC=$folder/rustdoc RUSTDOCFLAGS="-Z unstable-options --output-format json" \
    cargo doc --quiet --workspace --no-deps --all-features --lib --locked

status=0
for crate in ssm_proto ssm_forward ssm_local; do
    text=tests/api/${crate//_/-}.txt
    # The fuzz targets' bodies are not part of the interface.
    cargo-public-api public-api -sss --rustdoc-json "$target/doc/$crate.json" | grep -v 'ssm_proto::fuzzing' >"$folder/$crate.txt"
    if $write; then
        mkdir -p tests/api
        cp "$folder/$crate.txt" "$text"
    elif diff -u "$text" "$folder/$crate.txt"; then
        echo "ok    $text"
    else
        echo "FAIL  $text: the interface has changed; if the change is intended, run tests/api.sh --write and describe the change in CHANGELOG.md"
        status=1
    fi
done
exit $status
