//! The scripts that run on the node. They need `sh` and the usual tools; those of busybox are enough.
//!
//! Paths are arguments in an ASCII notation (see [`word`]). Only `printf '%b'` decodes it, so that no shell interprets a path. All
//! output is escaped (see [`super::wire`]).

/// Size of a piece in bytes. Files are transferred, compared and continued in pieces.
pub(super) const PIECE: u64 = 1 << 20;

/// The variables and functions of all scripts. `n WORD` sets `f` to the path. `h <FILE` sets `h` to the digest, or to `-` if the
/// node has no tool for digests.
const COMMON: &str = r#"export LC_ALL=C;
unset CDPATH;
cd 2>/dev/null;
k=$(umask);
umask 077;
u=1048576;
for s in TOOLS;do type $s >/dev/null 2>&1||{ printf '%s\357\005%s\n\357\004done\n' MARK $s;exit 1;};done;
r=$(printf 's/\357/\357\001/g');
n(){ f=$(printf '%bX' "$1");f=${f%X};};
for s in sha256sum 'shasum -a 256' 'openssl dgst -sha256 -r' '';do type ${s%% *} >/dev/null 2>&1&&break;done;
h(){ h=-;[ -z "$s" ]||{ h=$($s)||h=;h=${h%% *};};};
"#;

/// Lists its arguments. If `$2` is `R`, also lists everything below directories.
///
/// Each record begins with the mark `m`, which no name contains, and a letter: `B` the beginning of a source, `D` a directory
/// without `R`, `E` the reason why a source cannot be copied, `S` mode, size, time and path, `U` the path of an unreadable entry,
/// `L` the path of a link, `T` the target of that link.
const LIST: &str = r#"export m=RECORD b="$1" R="$2";
shift 2;
for w do
n "$w";
printf %sB $m;
if [ -d "$f" ];then
if [ -z "$R" ];then printf %sD $m;
elif ! type find >/dev/null 2>&1;then printf '%sEthe node lacks find' $m;
else case $f in */);;*)f=$f/;;esac;
find "$f" -exec sh -c "$b" sh {} +;
fi;
elif e=$(stat -L -c '%f %s %Y x' "$f" 2>&1);then printf %sS%s $m "$e";
[ -r "$f" ]||printf %sU $m;
else printf %sE%s $m "$e";
fi;
done|sed "$r";
printf '\n\357\002\357\004done\n'"#;

/// The script that `find` runs in [`LIST`] for the names that it found.
const LIST_NAMES: &str = r#"stat -c "${m}S%f %s %Y %n" "$@";
for f do
if [ -L "$f" ];then printf '%sL%s%sT' $m "$f" $m;readlink "$f";
elif [ ! -r "$f" ]||{ [ -d "$f" ]&&[ ! -x "$f" ];};then printf '%sU%s' $m "$f";fi;
done;"#;

/// Sends what its arguments request: `c PATH` a whole file and its digest, `h PATH` a digest, `p PATH FIRST END` the digests of
/// pieces, `g PATH FIRST END` pieces.
const SEND: &str = r#"while [ $# -gt 0 ];do
n "$2";
h=;
i=$3;
case $1 in
c) { cat <"$f";echo;}|sed "$r";printf '\357\002';h <"$f";printf '\357\003%s\n' "$h";shift 2;;
h) h <"$f";printf '\357\003%s\n' "$h";shift 2;;
p) while [ $i -lt $4 ];do h=$(dd bs=$u skip=$i count=1 <"$f" 2>/dev/null|{ h;printf %s "$h";});printf '\357\003%s\n' "$h";i=$((i+1));done;shift 4;;
g) while [ $i -lt $4 ];do { dd bs=$u skip=$i count=1 <"$f";echo;}|sed "$r";printf '\357\002';i=$((i+1));done;shift 4;;
esac;
done;
printf '\357\004done\n'"#;

/// Reads requests from a raw terminal, one per line, and answers each with a line: `=` and a result, or `!` and a reason.
///
/// Each request begins with the mark and its number. Any other line is a part of a file or a request that was already executed: the
/// agent has processed a message twice (AGENT-8). The script then exits, so that a file's text is never executed as a request, and
/// no answer is taken for the answer of another request. A full stop follows the data of `w` and is read exactly (`t`), because
/// `read` ignores blanks and NUL bytes at the beginning of a line. `e` (empty) has no effect; its answer confirms the request
/// before it.
///
/// Another program could put a link in the place of a partial file between a check and `dd`. GNU's `dd` refuses to write through
/// such a link (`O`).
///
/// `f` (finish) can arrive twice, if the session was lost before the answer arrived. The second time, the partial file no longer
/// exists, and the script compares the final file itself. `q` compares a file with the digest and the length in `w`, or only with the
/// length if the node has no tool for digests.
const RECEIVE: &str = r#"stty raw -echo -isig -opost;
O=oflag=nofollow;
dd $O if=/dev/null of=/dev/null 2>/dev/null||O=;
if dd bs=1 count=0 iflag=fullblock </dev/null >/dev/null 2>&1;then
x(){ dd bs=$1 count=1 iflag=fullblock 2>/dev/null;};t(){ [ "$(x 1)" = . ]||exit;};printf '%s1\n' MARK;
else x(){ head -c $1;};t(){ :;};printf '%s0\n' MARK;fi;
y(){ set -f;set -- $e;set +f;printf '!%s ;;\n' "$*";};
z(){ printf '=%s\n' "$1";};
q(){ h=;h <"$1";[ "$h" = "${w% *}" ]||{ [ "$h" = - ]&&[ $(stat -c %s "$1") = "${w#* }" ];};};
v(){ case $1 in =*)chmod ${1#=} "$3";;*)if [ -f "$2" ]&&[ ! -L "$2" ];then chmod $(stat -c %a "$2") "$3";else chmod $(printf %o $((0$1&~0$k))) "$3";fi;;esac&&{ [ $4 = - ]||TZ=UTC0 touch -c -t $4 "$3";};};
N=0;
while read -r j c a b i l w;do
[ "$j" = MARK.$N ]||exit;
N=$((N+1));
n "$b";
g=$f;
n "$a";
e=;
case $c in
t) if [ -d "$f" ];then z d;elif [ -f "$f" ];then z f;elif [ -e "$f" ]||[ -L "$f" ];then z o;else z n;fi;;
d) if [ -d "$f" ]&&[ ! -L "$f" ];then z old;elif e=$(mkdir -m $(printf %o $((0$i&~0$k|0700))) "$f" 2>&1);then z new;else y;fi;;
o) e="$f is not a file of this user";
if [ -L "$f" ];then y;
elif (set -C;: >"$f") 2>/dev/null;then e=$(dd if=/dev/null $O of="$f" bs=1 seek=$i count=0 2>&1)&&z new||y;
elif [ ! -e "$f" ];then e=$( (set -C;: >"$f") 2>&1);y;
elif [ -f "$f" ]&&[ -O "$f" ];then e=$(dd if=/dev/null $O of="$f" bs=1 seek=$i count=0 2>&1)&&z old||y;
else y;fi;;
p) while [ $i -lt $l ];do h=$(dd bs=$u skip=$i count=1 <"$f" 2>/dev/null|{ h;printf %s "$h";});z $h;i=$((i+1));done;;
w) if [ -L "$f" ];then x $l >/dev/null;t;e="$f is a link";y;elif e=$(x $l|dd ibs=65536 obs=$u seek=$i conv=notrunc $O of="$f" 2>&1);then t;z;else t;y;fi;;
f) if [ -L "$f" ];then e="$f is a link";y;
elif [ ! -e "$f" ]&&[ -f "$g" ];then q "$g"&&z $h||{ e=differs;y;};
elif ! e=$(dd if=/dev/null $O of="$f" conv=notrunc,fsync 2>&1);then y;
elif ! q "$f";then e=differs;y;
elif [ -d "$g" ];then e="$g is a directory";y;
elif e=$({ v $i "$g" "$f" $l&&mv -f "$f" "$g";} 2>&1);then z $h;else y;fi;;
l) if [ -d "$g" ]&&[ ! -L "$g" ];then e="$g is a directory";y;elif e=$(rm -f "$g" 2>&1&&ln -s -- "$f" "$g" 2>&1);then z;else y;fi;;
m) if e=$(v $i "$f" "$f" $l 2>&1);then z;else y;fi;;
r) rm -f "$f";z;;
e) z;;
esac;
done"#;

/// Returns the words of the command that lists `paths`. The output begins with `begin`; `mark` separates the records.
pub(super) fn list<'a>(begin: &str, mark: &str, recursive: bool, paths: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let script = whole(&format!("printf %s MARK;{LIST}"), begin, "sed dd stat").replace("RECORD", mark);
    let flag = if recursive { "R" } else { "" };
    let head = ["sh", "-c", &script, "sh", &one_line(LIST_NAMES), flag];
    head.iter().map(|word| (*word).to_owned()).chain(paths.map(word)).collect()
}

/// Returns the words of the command that sends what `operations` request. The output begins with `mark`.
pub(super) fn send(mark: &str, operations: Vec<String>) -> Vec<String> {
    let script = whole(&format!("printf %s MARK;{SEND}"), mark, "sed dd cat");
    ["sh", "-c", &script, "sh"].iter().map(|word| (*word).to_owned()).chain(operations).collect()
}

/// Returns the command line that receives requests from a raw terminal. Its output and each request begin with `mark`.
pub(super) fn receive(mark: &str) -> String {
    whole(RECEIVE, mark, "stty dd head chmod touch mkdir mv rm ln stat")
}

/// Completes a script. The result is one line, because a session document may refuse a command of several lines.
fn whole(script: &str, mark: &str, tools: &str) -> String {
    one_line(&format!("{COMMON}{script}")).replace("MARK", mark).replace("TOOLS", tools)
}

fn one_line(script: &str) -> String {
    script.replace('\n', " ")
}

/// Encodes bytes as a word that no shell and no session document changes, and that `printf '%b'` decodes.
pub(super) fn word(bytes: &[u8]) -> String {
    let mut word = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b'+' | b',' | b'=' => {
                word.push(char::from(*byte));
            }
            other => word.push_str(&format!("\\0{other:03o}")),
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// Runs the script with this input, and returns its answers.
    fn answers(requests: &str) -> Vec<String> {
        let mut shell = Command::new("sh")
            .args(["-c", &receive("7mark")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The shell may exit before it has read everything.
        drop(shell.stdin.take().unwrap().write_all(requests.as_bytes()));
        let output = String::from_utf8(shell.wait_with_output().unwrap().stdout).unwrap();
        output.lines().skip(1).map(str::to_owned).collect()
    }

    #[test]
    fn a_file_s_text_is_never_taken_for_a_request() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("precious");
        std::fs::write(&file, "x").unwrap();
        let path = word(file.as_os_str().as_bytes());
        // Without the mark, with a wrong number, and a copy of a request.
        for second in ["r", "7mark r", "7mark.0 r", "7mark.2 r", "7mark.0 t"] {
            let requests = format!("7mark.0 t {path}\n{second} {path}\n7mark.1 t {path}\n");
            assert_eq!(answers(&requests), ["=f"], "{second}");
        }
        assert!(file.exists());
        // A message of 16 bytes at the end of the data has arrived twice. `read` would ignore the rest.
        for rest in ["\0", " ", "x"] {
            let data = rest.repeat(64 + 16);
            let part = format!("{path}.part");
            let requests = format!("7mark.0 o {part} x 64\n7mark.1 w {part} x 0 64\n{data}.7mark.2 t {path}\n");
            assert_eq!(answers(&requests), ["=new"], "{rest:?}");
            std::fs::remove_file(folder.path().join("precious.part")).unwrap();
        }
        assert_eq!(answers(&format!("7mark.0 t {path}\n7mark.1 e x x\n7mark.2 r {path}\n")), ["=f", "=", "="]);
        assert!(!file.exists());
    }
}
