//! Which version stands in which file, and who refuses what.
//!
//! There is one number, the *format* of the directory. It is raised by whatever an older program could not read or would
//! take for damage: a new kind of entry, a new codec, another layout. What an older program may pass over (a new field of
//! a JSON file) does not raise it. A program writes the lowest format that says what it has to say, and writes it into
//! `state` durably before anything of that format stands elsewhere.
//!
//! | file | where its version stands |
//! |---|---|
//! | `state` | `"v"` and `"writer"` of its JSON |
//! | `pos` | first byte of its payload |
//! | `g….ok`, `reserve` | a stamp, first line ([`stamp`]); an empty marker is format 1 |
//! | `g….end`, `hints` | `"v"` of sealed JSON ([`seal`]); none is format 1 |
//! | a block | high half of its first byte; its codec is the low half (`block.rs`) |
//! | an entry | its kind: a kind that is not known is of a later format |
//! | `dead/…` | `"v"` of its first line; only people read these, nothing is refused for them |
//! | `lock` | second line, for people; what it says is over when the lock is free |
//! | sled's own files | sled's `conf`; its version is pinned |
//!
//! - A newer program with an older directory: reads it and goes on in it. `tests/fixtures/outbox` holds one of each.
//! - An older program with a newer directory: names the file, who wrote it and the formats, changes nothing, exit 78. So
//!   with every single file of a later format, for `state` may be the one that is lost. A version is believed only under
//!   a good checksum: a flipped bit is damage, which is repaired, not a version.
//! - A block or entry of a later format shows only in an open database, whose own files sled may have rewritten by then;
//!   blocks are never touched, nothing is set aside. Found while the daemon runs it stops the drain, with an alarm.
//! - Frozen for all versions: the framing of two-slot files (slots.rs), the first five bytes of a block (version and
//!   codec, then a CRC-32 of all the rest), stamps, seals, and the names of the files above.
//! - Everything is little-endian, by explicit conversion; keys of blocks are big-endian. sled is little-endian too.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;

use super::directory::{Directory, Found};
use super::{slots, state};

#[cfg(target_endian = "big")]
compile_error!("the outbox is written on little-endian machines only; nobody has tried another (docs/decisions/0235)");

/// The latest format of a directory that this program knows, and the only one it writes.
pub(super) const FORMAT: u32 = 1;
/// Version of this program.
pub(super) const WRITER: &str = env!("CARGO_PKG_VERSION");
/// More of a file is not looked at.
const LOOK_BYTES_MAX: u64 = 4 << 20;

/// Something that only a later program can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Later {
    /// The file.
    pub(super) file: String,
    /// Version of the program that wrote it, if it says so.
    pub(super) writer: Option<String>,
    /// Its format.
    pub(super) format: u32,
}

impl std::fmt::Display for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, writer, format } = self;
        let writer = writer.as_deref().map_or("a later fieldpost".to_owned(), |writer| format!("fieldpost {writer}"));
        write!(
            f,
            "{file} was written by {writer}, format {format}; this program, fieldpost {WRITER}, knows up to {FORMAT}: \
             use the version that wrote it, or a later one"
        )
    }
}

/// What stands at the head of a file that is no JSON: who wrote it and in what format, under a checksum. One line.
pub(super) fn stamp() -> String {
    let text = format!("fieldpost {WRITER}, format {FORMAT}");
    format!("{text}, {:08x}\n", crc32fast::hash(text.as_bytes()))
}

/// Writer and format of a stamp; `None`: there is none, or it is damaged.
fn read_stamp(head: &[u8]) -> Option<(String, u32)> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\n').next()?).ok()?;
    let (text, sum) = line.rsplit_once(", ")?;
    let (writer, format) = text.strip_prefix("fieldpost ")?.rsplit_once(", format ")?;
    (format!("{:08x}", crc32fast::hash(text.as_bytes())) == sum)
        .then(|| Some((writer.to_owned(), format.parse().ok()?)))?
}

/// JSON in one line, and its checksum in the next.
pub(crate) fn seal(json: &str) -> String {
    format!("{json}\n{:08x}\n", crc32fast::hash(json.as_bytes()))
}

/// The JSON of [`seal`]; `None`: torn or damaged.
pub(crate) fn unseal(text: &str) -> Option<&str> {
    let (json, sum) = text.trim_end().rsplit_once('\n')?;
    (format!("{:08x}", crc32fast::hash(json.as_bytes())) == sum).then_some(json)
}

/// What every JSON file of the outbox says first.
#[derive(Debug, Deserialize)]
struct Versioned {
    /// None: from before it was written everywhere.
    #[serde(default = "first")]
    v: u32,
    writer: Option<String>,
}

fn first() -> u32 {
    1
}

/// Writer and format that a JSON object names; `None`: it is none, or names none that can be a version.
pub(super) fn of_json(json: &[u8]) -> Option<(Option<String>, u32)> {
    let versioned: Versioned = serde_json::from_slice(json).ok()?;
    Some((versioned.writer, versioned.v))
}

/// The first file of a later format, if there is one. Reads only; what cannot be read is for recovery to judge.
pub(super) fn find_later(directory: &Directory) -> io::Result<Option<Later>> {
    let later = |path: &Path, found: Option<(Option<String>, u32)>| {
        let (writer, format) = found.filter(|(_, format)| *format > FORMAT)?;
        Some(Later { file: path.display().to_string(), writer, format })
    };
    let state = directory.file("state");
    if let Some(found) = later(&state, slot(&state).and_then(|payload| of_json(&payload))) {
        return Ok(Some(found));
    }
    let pos = directory.file("pos");
    let version = slot(&pos).and_then(|payload| payload.first().map(|version| (None, u32::from(*version))));
    if let Some(found) = later(&pos, version) {
        return Ok(Some(found));
    }
    for Found { id, .. } in directory.list()? {
        let marker = directory.marker(id);
        if let Some(found) = later(&marker, stamp_of(&marker)) {
            return Ok(Some(found));
        }
        let summary = directory.summary(id);
        if let Some(found) = later(&summary, of_sealed(&summary)) {
            return Ok(Some(found));
        }
    }
    let (reserve, hints) = (directory.file("reserve"), directory.file("hints"));
    Ok(later(&reserve, stamp_of(&reserve)).or_else(|| later(&hints, of_sealed(&hints))))
}

fn slot(path: &Path) -> Option<Vec<u8>> {
    slots::read(path).ok()?
}

fn stamp_of(path: &Path) -> Option<(Option<String>, u32)> {
    let (writer, format) = read_stamp(&look(path, 256)?)?;
    Some((Some(writer), format))
}

fn of_sealed(path: &Path) -> Option<(Option<String>, u32)> {
    let text = String::from_utf8(look(path, LOOK_BYTES_MAX)?).ok()?;
    of_json(unseal(&text)?.as_bytes())
}

/// The beginning of a file.
fn look(path: &Path, bytes_max: u64) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(bytes_max).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Why the directory is not for this program and this agent; `None`: it is. Reads only.
pub(super) fn foreign(directory: &Directory, agent: &str) -> io::Result<Option<String>> {
    if let Some(later) = find_later(directory)? {
        return Ok(Some(format!("{later}. Nothing was changed")));
    }
    let file = directory.file("state");
    Ok(match state::read(&file)? {
        state::Loaded::State(state) if state.agent != agent => Some(format!(
            "{} is the outbox of agent \"{}\", not of \"{agent}\": set agent.id back, or give this agent a state_dir of \
             its own. Nothing was changed",
            directory.path().display(),
            state.agent
        )),
        state::Loaded::Unknown => Some(format!(
            "{} is whole, but not what fieldpost {WRITER} writes: use the version that wrote it. Nothing was changed",
            file.display()
        )),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_and_seals_are_believed_only_under_their_checksum() {
        let text = stamp();
        assert_eq!(read_stamp(text.as_bytes()), Some((WRITER.to_owned(), FORMAT)));
        assert_eq!(read_stamp(b""), None, "the markers of the first version");
        let sealed = seal("{\"v\":1}");
        assert_eq!(unseal(&sealed), Some("{\"v\":1}"));
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(read_stamp(&bytes), None, "byte {at}");
        }
        for at in 0..sealed.len() - 1 {
            let mut bytes = sealed.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(String::from_utf8(bytes).is_ok_and(|text| unseal(&text).is_none()), "byte {at}");
        }
    }

    #[test]
    fn a_refusal_names_file_writer_and_formats() {
        let later = Later { file: "x/state".to_owned(), writer: Some("7.1.0".to_owned()), format: 2 };
        let text = later.to_string();
        assert!(
            text.starts_with("x/state was written by fieldpost 7.1.0, format 2; this program, fieldpost "),
            "{text}"
        );
        assert!(text.contains("knows up to 1"), "{text}");
    }
}
