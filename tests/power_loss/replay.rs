//! Builds the directory that a power cut may leave.
//!
//! What a cut leaves, harsher than any one file system:
//! - Contents. What a completed fsync or fdatasync of the file covers is there. Each other 4 KiB page is independently old,
//!   some later version, or torn: each of its 512-byte sectors of one of two versions.
//! - Length. Anywhere between the durable and the current one, so that a file can be longer than what was written of it
//!   (zeros), or shorter. A truncation may count at once, or not.
//! - Names. Only an fsync of the directory makes names in it durable (on ext4 an fsync of the file would do). Since then each
//!   change of a name is independently there or not, in any order but that of one name. A rename inside a directory is
//!   one change; between two directories the new name may be there beside the old one, never neither.
//! - `sync_file_range`: nothing ([`Mode::Strict`], a device with a volatile cache) or the pages it names ([`Mode::Range`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use super::dice::Dice;
use super::journal::{Journal, Object, Op, ROOT, Span};

const PAGE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;

/// What sync_file_range is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Strict,
    Range,
}

/// How likely what is not synced got to the medium, in percent.
#[derive(Debug, Clone, Copy)]
struct Temper {
    newest: u64,
    oldest: u64,
    torn: u64,
    names: u64,
}

const TEMPERS: [Temper; 6] = [
    Temper { newest: 100, oldest: 0, torn: 0, names: 100 },
    Temper { newest: 0, oldest: 100, torn: 0, names: 0 },
    Temper { newest: 0, oldest: 100, torn: 0, names: 60 },
    Temper { newest: 40, oldest: 30, torn: 20, names: 50 },
    Temper { newest: 80, oldest: 5, torn: 10, names: 85 },
    Temper { newest: 10, oldest: 70, torn: 10, names: 25 },
];

/// A directory as it was at some place of a recording.
pub struct Replay<'a> {
    journal: &'a Journal,
    /// Records before this one happened.
    end: usize,
    /// For each object, records before this one are covered by a sync.
    synced: HashMap<Object, usize>,
    /// sync_file_range that returned: object, what it covers, up to which record.
    ranges: Vec<(Object, Range<u64>, usize)>,
}

/// Contents by path, `None` for a directory.
pub type State = BTreeMap<String, Option<Vec<u8>>>;
type Names = BTreeMap<Object, BTreeMap<String, Object>>;

/// A change of one file.
enum Event<'a> {
    Write(u64, &'a [u8]),
    Truncate(u64),
}

impl<'a> Replay<'a> {
    pub fn new(journal: &'a Journal, end: usize, mode: Mode) -> Self {
        let mut begun = HashMap::new();
        let mut synced: HashMap<Object, usize> = HashMap::new();
        let mut ranges = Vec::new();
        for (at, op) in journal.ops[..end].iter().enumerate() {
            match op {
                Op::SyncBegins { object, id, span } => {
                    begun.insert(*id, (at, *object, span.clone()));
                }
                Op::SyncEnds { id, good: true } => {
                    let (began, object, span) = begun.remove(id).expect("a sync begins before it ends");
                    match span {
                        Span::Whole => {
                            let upto = synced.entry(object).or_default();
                            *upto = began.max(*upto);
                        }
                        Span::Bytes(range) if mode == Mode::Range => ranges.push((object, range, began)),
                        Span::Bytes(_) => {}
                    }
                }
                _ => {}
            }
        }
        Self { journal, end, synced, ranges }
    }

    fn synced(&self, object: Object) -> usize {
        self.synced.get(&object).copied().unwrap_or(0)
    }

    /// Everything that was done, as if there had been no cut.
    pub fn whole(&self) -> State {
        let names = self.names(|_, _| true);
        self.tree(&names, |object| {
            let mut content = self.journal.objects[object].base.clone();
            self.events(object, 0).iter().for_each(|(_, event)| event.apply(&mut content));
            content
        })
    }

    /// What every path is, as if there had been no cut.
    pub fn objects(&self) -> BTreeMap<String, Object> {
        let mut found = BTreeMap::new();
        let names = self.names(|_, _| true);
        self.walk(&names, |path, object| {
            found.insert(path, object);
        });
        found
    }

    /// One of the states that a cut may leave: contents by path, `None` for a directory.
    pub fn cut(&self, dice: &mut Dice) -> State {
        let temper = TEMPERS[dice.below(TEMPERS.len() as u64) as usize];
        let mut for_names = dice.fork(1);
        let names = self.names(|_, _| for_names.percent(temper.names));
        self.tree(&names, |object| {
            let mut dice = dice.fork(2 + object as u64);
            // Now and then a file fares otherwise than the rest.
            let other = TEMPERS[dice.below(TEMPERS.len() as u64) as usize];
            self.content(object, if dice.percent(20) { other } else { temper }, &mut dice)
        })
    }

    fn events(&self, object: Object, from: usize) -> Vec<(usize, Event<'a>)> {
        let known = &self.journal.objects[object];
        let inside = known.events.iter().copied().filter(|at| (from..self.end).contains(at));
        let event = |at: usize| match &self.journal.ops[at] {
            Op::Write { at: offset, data, .. } => (at, Event::Write(*offset, data)),
            Op::Truncate { length, .. } => (at, Event::Truncate(*length)),
            other => unreachable!("{other:?} changes no contents"),
        };
        inside.map(event).collect()
    }

    /// Names of all directories, when `keep(directory, record)` says which changes that no sync covers are there.
    fn names(&self, mut keep: impl FnMut(Object, usize) -> bool) -> Names {
        let objects = self.journal.objects.iter().enumerate();
        let mut names: Names =
            objects.filter(|(_, known)| known.is_directory).map(|(at, known)| (at, known.names.clone())).collect();
        // Names of which a change is missing: later changes of the same name are missing too.
        let mut missing: HashSet<(Object, &str)> = HashSet::new();
        // What an object is called really, to know what a rename moves.
        let mut real = names.clone();
        for (at, op) in self.journal.ops[..self.end].iter().enumerate() {
            let covered = |directory: &Object| at < self.synced(*directory);
            match op {
                Op::Create { directory, name, object } | Op::Link { directory, name, object } => {
                    real.get_mut(directory).expect("a directory").insert(name.clone(), *object);
                    let there = !missing.contains(&(*directory, name)) && keep(*directory, at);
                    if covered(directory) || there {
                        names.get_mut(directory).expect("a directory").insert(name.clone(), *object);
                    } else {
                        missing.insert((*directory, name));
                    }
                }
                Op::Unlink { directory, name } => {
                    real.get_mut(directory).expect("a directory").remove(name);
                    let there = !missing.contains(&(*directory, name)) && keep(*directory, at);
                    if covered(directory) || there {
                        names.get_mut(directory).expect("a directory").remove(name);
                    } else {
                        missing.insert((*directory, name));
                    }
                }
                Op::Rename { from, to } => {
                    let object = real.get_mut(&from.0).expect("a directory").remove(&from.1).expect("renamed");
                    real.get_mut(&to.0).expect("a directory").insert(to.1.clone(), object);
                    let free = !missing.contains(&(from.0, &from.1)) && !missing.contains(&(to.0, &to.1));
                    let same = from.0 == to.0;
                    let left = covered(&from.0) || (free && keep(from.0, at));
                    let came = left || covered(&to.0) || (!same && free && keep(to.0, at));
                    if came {
                        names.get_mut(&to.0).expect("a directory").insert(to.1.clone(), object);
                    } else {
                        missing.insert((to.0, &to.1));
                    }
                    if left {
                        names.get_mut(&from.0).expect("a directory").remove(&from.1);
                    } else {
                        missing.insert((from.0, &from.1));
                    }
                }
                _ => {}
            }
        }
        names
    }

    /// Every path below the root and what it is.
    fn walk(&self, names: &Names, mut visit: impl FnMut(String, Object)) {
        let mut left = vec![(String::new(), ROOT)];
        while let Some((path, directory)) = left.pop() {
            for (name, object) in &names[&directory] {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                if self.journal.objects[*object].is_directory {
                    left.push((path.clone(), *object));
                }
                visit(path, *object);
            }
        }
    }

    fn tree(&self, names: &Names, mut content: impl FnMut(Object) -> Vec<u8>) -> State {
        let mut found = BTreeMap::new();
        self.walk(names, |path, object| {
            let is_directory = self.journal.objects[object].is_directory;
            found.insert(path, (!is_directory).then(|| content(object)));
        });
        found
    }

    fn content(&self, object: Object, temper: Temper, dice: &mut Dice) -> Vec<u8> {
        let durable = self.synced(object);
        let mut old = self.journal.objects[object].base.clone();
        let events = self.events(object, 0);
        let (covered, pending) = events.split_at(events.partition_point(|(at, _)| *at < durable));
        covered.iter().for_each(|(_, event)| event.apply(&mut old));
        if pending.is_empty() {
            return old;
        }
        let ranges: Vec<_> = self.ranges.iter().filter(|(of, ..)| *of == object).collect();
        let length = choose_length(old.len() as u64, pending, temper, dice) as usize;
        let mut new = old.clone();
        new.resize(length, 0);
        for page in pages(&old, pending, length) {
            let span = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
            let least =
                ranges.iter().filter(|(_, range, _)| range.start < span.end as u64 && (span.start as u64) < range.end);
            let least = least.map(|(.., upto)| pending.partition_point(|(at, _)| at < upto)).max().unwrap_or(0);
            let bytes = choose_page(&old, &span, pending, least, temper, dice);
            let end = span.end.min(length);
            new[span.start..end].copy_from_slice(&bytes[..end - span.start]);
        }
        new
    }
}

impl Event<'_> {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                let (from, to) = (*at as usize, *at as usize + data.len());
                if content.len() < to {
                    content.resize(to, 0);
                }
                content[from..to].copy_from_slice(data);
            }
            Self::Truncate(length) => content.resize(*length as usize, 0),
        }
    }

    fn length_after(&self, before: u64) -> u64 {
        match self {
            Self::Write(at, data) => before.max(at + data.len() as u64),
            Self::Truncate(length) => *length,
        }
    }

    /// Applies what of it falls into a page.
    fn apply_to_page(&self, page: &mut [u8], start: usize) {
        match self {
            Self::Write(at, data) => {
                let at = *at as usize;
                let (from, to) = (at.max(start), (at + data.len()).min(start + page.len()));
                if from < to {
                    page[from - start..to - start].copy_from_slice(&data[from - at..to - at]);
                }
            }
            Self::Truncate(length) => {
                let from = (*length as usize).max(start);
                if from < start + page.len() {
                    page[from - start..].fill(0);
                }
            }
        }
    }
}

/// Pages of a file of `length` bytes that changed.
fn pages(old: &[u8], pending: &[(usize, Event<'_>)], length: usize) -> BTreeSet<usize> {
    let mut pages = BTreeSet::new();
    for (_, event) in pending {
        let span = match event {
            Event::Write(at, data) => *at as usize..*at as usize + data.len(),
            Event::Truncate(to) => *to as usize..old.len(),
        };
        if span.start < span.end.min(length) {
            pages.extend(span.start / PAGE_BYTES..=(span.end.min(length) - 1) / PAGE_BYTES);
        }
    }
    pages
}

fn choose_length(old: u64, pending: &[(usize, Event<'_>)], temper: Temper, dice: &mut Dice) -> u64 {
    let mut lengths = vec![old];
    for (_, event) in pending {
        lengths.push(event.length_after(*lengths.last().expect("one is there")));
    }
    if dice.percent(temper.newest) {
        return lengths[lengths.len() - 1];
    }
    if dice.percent(temper.oldest) {
        return old;
    }
    if dice.percent(50) {
        return lengths[dice.below(lengths.len() as u64) as usize];
    }
    let (least, most) = (lengths.iter().min().expect("one"), lengths.iter().max().expect("one"));
    dice.between(*least, *most)
}

fn choose_page(
    old: &[u8],
    span: &Range<usize>,
    pending: &[(usize, Event<'_>)],
    least: usize,
    temper: Temper,
    dice: &mut Dice,
) -> Vec<u8> {
    let version = |count: usize| {
        let mut page = vec![0; PAGE_BYTES];
        let there = span.start.min(old.len())..span.end.min(old.len());
        page[..there.len()].copy_from_slice(&old[there]);
        pending[..count].iter().for_each(|(_, event)| event.apply_to_page(&mut page, span.start));
        page
    };
    let choose = |dice: &mut Dice| {
        if dice.percent(temper.newest) {
            pending.len()
        } else if dice.percent(temper.oldest) {
            least
        } else {
            dice.between(least as u64, pending.len() as u64) as usize
        }
    };
    let mut page = version(choose(dice));
    if dice.percent(temper.torn) {
        let other = version(dice.between(least as u64, pending.len() as u64) as usize);
        for at in (0..PAGE_BYTES).step_by(SECTOR_BYTES) {
            if dice.percent(50) {
                page[at..at + SECTOR_BYTES].copy_from_slice(&other[at..at + SECTOR_BYTES]);
            }
        }
    }
    page
}

/// Writes a state into an empty directory.
pub fn write(state: &State, to: &Path) {
    for (path, content) in state {
        match content {
            None => std::fs::create_dir(to.join(path)).unwrap(),
            Some(content) => std::fs::write(to.join(path), content).unwrap(),
        }
    }
}
