//! Text for people: sizes, lists, pages. What comes from elsewhere (names of sources and devices, paths, what a broker says)
//! is shown so that it steers no terminal.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::outbox::look::steers;

/// One line, with escapes for what would end it, steer the terminal, or turn the direction of writing.
pub(super) fn line(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let shown = |char: char| if steers(char) { char.escape_unicode().to_string() } else { char.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

/// Lines as a page, each made safe.
pub(super) fn page(lines: &[String]) -> String {
    lines.iter().map(|text| line(text).into_owned() + "\n").collect()
}

pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// `plant 12, meter 3`
pub(super) fn list(sources: &BTreeMap<String, u64>) -> String {
    sources.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_a_terminal() {
        let hostile = "a\u{1b}[2Jb\nc\rd\u{7}e\u{9b}31mf\u{202e}g é";
        let shown = "a\\u{1b}[2Jb\\u{a}c\\u{d}d\\u{7}e\\u{9b}31mf\\u{202e}g é";
        assert_eq!(line(hostile), shown);
        assert_eq!(page(&["x".to_owned(), hostile.to_owned()]), format!("x\n{shown}\n"));
    }
}
