//! Whether the state directory is one: what is not ours is named, before anything is made in it.
//!
//! A symbolic link to a directory is as good as the directory; systemd itself makes such links.

use std::fs;
use std::io;
use std::path::Path;

use crate::outbox::OpenError;

use super::super::directory::GenerationId;

/// What may lie beside `outbox` without being a sign that the directory is somebody else's.
const BESIDE: [&str; 4] = ["lock", "outbox", "control.sock", "lost+found"];
/// What an outbox is known by, besides generations.
const INSIDE: [&str; 6] = ["state", "pos", "reserve", "hints", "dead", "damaged"];
/// Names told in a refusal.
const NAMES_TOLD_MAX: usize = 3;

/// Refuses a place that is no directory, or the directory of something else. Reads only.
pub(super) fn check(state_dir: &Path) -> Result<(), OpenError> {
    let Some(beside) = names(state_dir)? else { return Ok(()) };
    let outbox = state_dir.join("outbox");
    let foreign = |path: &Path, others: &[String]| {
        let told = others.iter().take(NAMES_TOLD_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if others.len() > NAMES_TOLD_MAX { ", ..." } else { "" };
        OpenError::Foreign(format!(
            "{} is not the state directory of a fieldpost: {} holds other things ({told}{more}). Give agent.state_dir a \
             directory of its own. Nothing was changed",
            state_dir.display(),
            path.display()
        ))
    };
    match names(&outbox)? {
        None => {
            let is_other = |name: &String| !BESIDE.contains(&name.as_str()) && !name.starts_with('.');
            let others: Vec<_> = beside.into_iter().filter(is_other).collect();
            if others.is_empty() { Ok(()) } else { Err(foreign(state_dir, &others)) }
        }
        Some(inside) => {
            let ours = |name: &String| INSIDE.contains(&name.as_str()) || stem_is_ours(name);
            let others: Vec<_> = inside.iter().filter(|name| *name != "lost+found").cloned().collect();
            if others.is_empty() || inside.iter().any(ours) { Ok(()) } else { Err(foreign(&outbox, &others)) }
        }
    }
}

fn stem_is_ours(name: &str) -> bool {
    let name = name.strip_prefix("dead-").unwrap_or(name);
    let stem = name.strip_suffix(".ok").or_else(|| name.strip_suffix(".end")).unwrap_or(name);
    GenerationId::parse(stem).is_some()
}

/// What is in a directory, sorted; `None`: nothing is there at all.
fn names(path: &Path) -> Result<Option<Vec<String>>, OpenError> {
    let fail =
        |text: String| OpenError::Io { what: "use", path: path.display().to_string(), source: io::Error::other(text) };
    let Ok(link) = fs::symlink_metadata(path).map(|meta| meta.is_symlink()) else { return Ok(None) };
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if link => {
            let to = fs::read_link(path).map(|to| to.display().to_string()).unwrap_or_default();
            let why = if error.kind() == io::ErrorKind::NotFound {
                "which does not exist; is its disk mounted?".to_owned()
            } else {
                format!("which cannot be followed ({error})")
            };
            return Err(fail(format!("it is a symbolic link to {to}, {why}")));
        }
        Err(error) => return Err(fail(error.to_string())),
    };
    if !meta.is_dir() {
        return Err(fail("it is a file, not a directory".to_owned()));
    }
    let list = || -> io::Result<Vec<String>> {
        let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names: Vec<_> = entries.collect::<io::Result<_>>()?;
        names.sort_unstable();
        Ok(names)
    };
    list().map(Some).map_err(|error| fail(error.to_string()))
}
