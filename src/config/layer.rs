//! One layer of the configuration (a file, the environment, the arguments) as a tree in which every value knows its
//! place. Layers are merged by figment, later ones win.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value as FigmentValue};
use figment::{Metadata, Profile, Provider};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{Mistake, Place};
use super::schema::{self, Shape};

/// Prefix of the variables that are settings.
pub const VARIABLE_PREFIX: &str = "FIELDPOST_";

/// A value and where its key stands.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where.
    pub place: Place,
    /// What.
    pub value: Value,
}

/// A TOML value.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Value {
    Table(BTreeMap<String, Node>),
    Array(Vec<Node>),
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// Dates and integers beyond 64 bits: no setting takes them, they are kept as text for the message.
    Other(&'static str, String),
}

impl Value {
    /// The value as a message shows it.
    pub fn describe(&self) -> String {
        match self {
            Self::Table(_) => "a table".to_owned(),
            Self::Array(_) => "a list".to_owned(),
            Self::Text(text) => format!("the text {text:?}"),
            Self::Integer(number) => format!("the number {number}"),
            Self::Float(number) => format!("the number {number}"),
            Self::Boolean(value) => format!("{value}"),
            Self::Other(kind, text) => format!("the {kind} {text}"),
        }
    }

    /// As [`Self::describe`], without the text where it may be a secret.
    pub fn describe_at(&self, path: &str) -> String {
        let secret = ["sasl", "password", "properties"].iter().any(|word| path.contains(word));
        if secret && matches!(self, Self::Text(_)) { "a text".to_owned() } else { self.describe() }
    }

    fn to_figment(&self) -> FigmentValue {
        match self {
            Self::Table(table) => to_dict(table).into(),
            Self::Array(nodes) => nodes.iter().map(|node| node.value.to_figment()).collect::<Vec<_>>().into(),
            Self::Text(text) | Self::Other(_, text) => text.as_str().into(),
            Self::Integer(number) => (*number).into(),
            Self::Float(number) => (*number).into(),
            Self::Boolean(value) => (*value).into(),
        }
    }
}

fn to_dict(table: &BTreeMap<String, Node>) -> Dict {
    table.iter().map(|(key, node)| (key.clone(), node.value.to_figment())).collect()
}

/// The tree of one layer.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    /// The file it was read from.
    pub path: Option<PathBuf>,
    /// Its top level.
    pub table: BTreeMap<String, Node>,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named("fieldpost")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, to_dict(&self.table))]))
    }
}

impl Layer {
    /// Reads a file's text. What the parser could not read is among the mistakes, what it could is in the layer.
    pub fn from_toml(path: &Path, text: &str, mistakes: &mut Vec<Mistake>) -> Self {
        let place = |offset: usize| Place::Line(path.to_owned(), line_of(text, offset));
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            mistakes.push(Mistake {
                place: error.span().map_or_else(|| Place::file(path), |span| place(span.start)),
                key: String::new(),
                text: format!("not TOML: {}", error.message().trim()),
            });
        }
        Self { path: Some(path.to_owned()), table: from_table(table.get_ref(), &place) }
    }

    /// Takes the variables `FIELDPOST_SECTION__KEY`. Names of sources are matched to those of `below` without regard to
    /// case, `-` and `_`, which a variable's name cannot tell.
    pub fn from_variables(
        variables: impl Iterator<Item = (String, String)>,
        below: &[Self],
        mistakes: &mut Vec<Mistake>,
    ) -> Self {
        let mut layer = Self::default();
        let mut variables: Vec<_> = variables.filter(|(name, _)| name.starts_with(VARIABLE_PREFIX)).collect();
        variables.sort();
        for (name, text) in variables {
            let mut path: Vec<String> =
                name[VARIABLE_PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
            if let [section, source, ..] = path.as_mut_slice() {
                if section == "sources" {
                    *source = source_name(source, below);
                }
            }
            let place = Place::Variable(name);
            if path.len() < 2 || path.iter().any(String::is_empty) {
                let text = "not a setting: settings are FIELDPOST_SECTION__KEY, as in FIELDPOST_OUTBOX__MAX_BYTES";
                mistakes.push(Mistake { place, key: String::new(), text: text.to_owned() });
                continue;
            }
            layer.put(&path, &text, &place, mistakes);
        }
        layer
    }

    /// Takes arguments `key=value`; the key is dotted as in TOML.
    pub fn from_arguments(arguments: &[String], mistakes: &mut Vec<Mistake>) -> Self {
        let mut layer = Self::default();
        for argument in arguments {
            let (key, text) = argument.split_once('=').unwrap_or((argument, ""));
            let place = Place::Argument(key.trim().to_owned());
            match dotted(key) {
                Some(path) if argument.contains('=') => layer.put(&path, text.trim(), &place, mistakes),
                _ => {
                    let text = "write section.key=value, as in outbox.max_bytes=64MiB".to_owned();
                    mistakes.push(Mistake { place, key: String::new(), text });
                }
            }
        }
        layer
    }

    fn put(&mut self, path: &[String], text: &str, place: &Place, mistakes: &mut Vec<Mistake>) {
        let value = match read_value(text, schema::shape_at(path), place) {
            Ok(value) => value,
            Err(text) => {
                mistakes.push(Mistake { place: place.clone(), key: path.join("."), text });
                return;
            }
        };
        let (last, parents) = path.split_last().expect("a setting's path is never empty");
        let mut table = &mut self.table;
        for key in parents {
            let node = table
                .entry(key.clone())
                .or_insert_with(|| Node { place: place.clone(), value: Value::Table(BTreeMap::new()) });
            if !matches!(node.value, Value::Table(_)) {
                node.value = Value::Table(BTreeMap::new());
            }
            let Value::Table(inner) = &mut node.value else { unreachable!("made a table above") };
            table = inner;
        }
        table.insert(last.clone(), Node { place: place.clone(), value });
    }

    /// Notes where each setting stands; a later layer overwrites an earlier one.
    pub fn note_places(&self, places: &mut BTreeMap<String, Place>) {
        fn walk(node: &Node, path: String, places: &mut BTreeMap<String, Place>) {
            match &node.value {
                Value::Table(table) => {
                    for (key, node) in table {
                        walk(node, format!("{path}.{key}"), places);
                    }
                }
                Value::Array(items) => {
                    for (index, node) in items.iter().enumerate() {
                        walk(node, format!("{path}[{index}]"), places);
                    }
                }
                _ => {}
            }
            places.insert(path, node.place.clone());
        }
        for (key, node) in &self.table {
            walk(node, key.clone(), places);
        }
    }
}

/// A value of a variable or argument: text where text is expected, else a TOML value; a list may also be written with
/// commas.
fn read_value(text: &str, shape: Option<&Shape>, place: &Place) -> Result<Value, String> {
    let parse = |text: &str| {
        let document = format!("value = {text}");
        let table =
            DeTable::parse(&document).map_err(|error| format!("not a TOML value: {}", error.message().trim()))?;
        let mut table = from_table(table.get_ref(), &|_| place.clone());
        Ok(table.remove("value").map_or(Value::Text(String::new()), |node| node.value))
    };
    match shape {
        Some(Shape::Text(..) | Shape::Word(_)) if text.len() > 1 && text.starts_with('"') && text.ends_with('"') => {
            parse(text)
        }
        Some(Shape::List(_)) if !text.starts_with('[') => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(
                items.map(|item| Node { place: place.clone(), value: Value::Text(item.to_owned()) }).collect(),
            ))
        }
        None | Some(Shape::Text(..) | Shape::Word(_)) => Ok(Value::Text(text.to_owned())),
        Some(_) => parse(text),
    }
}

fn from_table(table: &DeTable<'_>, place: &dyn Fn(usize) -> Place) -> BTreeMap<String, Node> {
    let entry = |(key, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
        let node = Node { place: place(key.span().start), value: from_value(value.get_ref(), place) };
        (key.get_ref().to_string(), node)
    };
    table.iter().map(entry).collect()
}

fn from_value(value: &DeValue<'_>, place: &dyn Fn(usize) -> Place) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            i64::from_str_radix(&digits, number.radix())
                .map_or_else(|_| Value::Other("number", number.to_string()), Value::Integer)
        }
        DeValue::Float(number) => number
            .as_str()
            .replace('_', "")
            .parse()
            .map_or_else(|_| Value::Other("number", number.to_string()), Value::Float),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(date) => Value::Other("date", date.to_string()),
        DeValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| Node { place: place(item.span().start), value: from_value(item.get_ref(), place) })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(from_table(table, place)),
    }
}

/// The parts of a dotted TOML key.
fn dotted(key: &str) -> Option<Vec<String>> {
    let document = format!("{} = 0", key.trim());
    let table = DeTable::parse(&document).ok()?;
    let mut path = Vec::new();
    let mut table = table.get_ref();
    loop {
        let (key, value) = table.iter().next()?;
        path.push(key.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => return Some(path),
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn source_name(written: &str, below: &[Layer]) -> String {
    let plain = |name: &str| name.to_ascii_lowercase().replace('-', "_");
    let names = below.iter().filter_map(|layer| match layer.table.get("sources").map(|node| &node.value) {
        Some(Value::Table(sources)) => Some(sources.keys()),
        _ => None,
    });
    names.flatten().find(|name| plain(name) == plain(written)).cloned().unwrap_or_else(|| written.to_owned())
}
