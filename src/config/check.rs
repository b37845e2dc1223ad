//! Compares a layer with the schema: unknown keys, wrong types, impossible values, each with its place. What is wrong is
//! taken out of the layer, so that the checks that follow see only what they can judge.

use std::collections::BTreeMap;

use super::layer::{Layer, Node, Value};
use super::mistake::{Mistake, Place};
use super::schema::{Key, ROOT, Shape};

/// Looks up text in the merged configuration by its dotted path: the words that decide which keys a table has.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Checks what one layer says.
pub(super) fn layer(layer: &mut Layer, merged: Lookup<'_>, mistakes: &mut Vec<Mistake>) {
    let mut walk = Walk { merged, mistakes };
    walk.table(&mut layer.table, &ROOT, "");
}

/// Finds what is missing in the merged configuration.
pub(super) fn missing(merged: &figment::value::Dict, places: &BTreeMap<String, Place>, main: &Place) -> Vec<Mistake> {
    let mut missing = Missing { places, main, found: Vec::new() };
    missing.shape(Some(&merged.clone().into()), &ROOT, "");
    missing.found
}

struct Walk<'a> {
    merged: Lookup<'a>,
    mistakes: &'a mut Vec<Mistake>,
}

impl Walk<'_> {
    fn table(&mut self, table: &mut BTreeMap<String, Node>, shape: &Shape, path: &str) {
        table.retain(|name, node| {
            let path = join(path, name);
            match self.shape_of(shape, name, node, &path) {
                Some(shape) => self.node(node, shape, &path),
                None => false,
            }
        });
    }

    /// The shape of one entry of a table; none after a mistake.
    fn shape_of<'s>(&mut self, shape: &'s Shape, name: &str, node: &Node, path: &str) -> Option<&'s Shape> {
        let parent = path.strip_suffix(name).unwrap_or(path).trim_end_matches('.');
        match shape {
            Shape::Map(legal, of) => match legal(name) {
                Ok(()) => Some(of),
                Err(text) => self.wrong(&node.place, path, text),
            },
            Shape::Table(keys) => match keys.iter().find(|key| key.name == name) {
                Some(key) => Some(&key.shape),
                None => self.unknown(&node.place, path, name, keys.iter().map(|key| key.name), parent),
            },
            Shape::Tagged { tag, variants } if *tag == name => match &node.value {
                Value::Text(word) if variants.iter().any(|(known, _)| known == word) => Some(&WORD),
                found => {
                    let words: Vec<_> = variants.iter().map(|(word, _)| *word).collect();
                    self.wrong(&node.place, path, not_a_word(found, &words))
                }
            },
            Shape::Tagged { tag, variants } => {
                let word = (self.merged)(&join(parent, tag))?;
                let lists = variants.iter().find(|(known, _)| *known == word)?.1;
                let mut keys = lists.iter().flat_map(|list| *list);
                if let Some(key) = keys.find(|key| key.name == name) {
                    return Some(&key.shape);
                }
                let names = std::iter::once(*tag).chain(lists.iter().flat_map(|list| *list).map(|key| key.name));
                let elsewhere = variants.iter().find(|(_, lists)| has(lists, name)).map(|(word, _)| *word);
                match elsewhere {
                    Some(other) => {
                        let text = format!("only for {tag} = {other:?}, and this is {tag} = {word:?}");
                        self.wrong(&node.place, path, text)
                    }
                    None => self.unknown(&node.place, path, name, names, parent),
                }
            }
            _ => None,
        }
    }

    /// Checks a value; false after a mistake.
    fn node(&mut self, node: &mut Node, shape: &Shape, path: &str) -> bool {
        let place = node.place.clone();
        match (shape, &mut node.value) {
            (Shape::Table(_) | Shape::Map(..) | Shape::Tagged { .. }, Value::Table(table)) => {
                self.table(table, shape, path);
                true
            }
            (Shape::List(of), Value::Array(items)) => {
                let mut index = 0;
                items.retain_mut(|item| {
                    let path = format!("{path}[{index}]");
                    index += 1;
                    self.node(item, of, &path) && (self.complete(item, of, &path))
                });
                true
            }
            (Shape::Text(accepts, _), Value::Text(text)) => match accepts(text) {
                Ok(()) => true,
                Err(text) => self.wrong::<()>(&place, path, text).is_some(),
            },
            (Shape::Word(words), Value::Text(word)) if words.contains(&word.as_str()) => true,
            (Shape::Word(words), found) => self.wrong::<()>(&place, path, not_a_word(found, words)).is_some(),
            (Shape::Integer(min, max), Value::Integer(number)) if (min..=max).contains(&&*number) => true,
            (Shape::Boolean, Value::Boolean(_)) => true,
            (shape, found) => {
                let text = format!("found {}; allowed: {}", found.describe_at(path), shape.allowed());
                self.wrong::<()>(&place, path, text).is_some()
            }
        }
    }

    /// Tables in a list are not merged, so what they lack is known here.
    fn complete(&mut self, item: &Node, shape: &Shape, path: &str) -> bool {
        let (Shape::Table(keys), Value::Table(table)) = (shape, &item.value) else { return true };
        let mut complete = true;
        for key in keys.iter().filter(|key| key.required && !table.contains_key(key.name)) {
            let already = join(path, key.name);
            if !self.mistakes.iter().any(|mistake| mistake.key == already) {
                self.wrong::<()>(&item.place, &already, lacks(key));
            }
            complete = false;
        }
        complete
    }

    fn unknown<'n, T>(
        &mut self,
        place: &Place,
        path: &str,
        name: &str,
        known: impl Iterator<Item = &'n str>,
        parent: &str,
    ) -> Option<T> {
        let known: Vec<_> = known.collect();
        let text = match nearest(name, &known) {
            Some(near) => format!("unknown setting; did you mean {}?", join(parent, near)),
            None => format!("unknown setting; known here: {}", known.join(", ")),
        };
        self.wrong(place, path, text)
    }

    fn wrong<T>(&mut self, place: &Place, path: &str, text: String) -> Option<T> {
        self.mistakes.push(Mistake { place: place.clone(), key: path.to_owned(), text });
        None
    }
}

const WORD: Shape = Shape::Text(super::values::any, "text");

struct Missing<'a> {
    places: &'a BTreeMap<String, Place>,
    main: &'a Place,
    found: Vec<Mistake>,
}

impl Missing<'_> {
    fn shape(&mut self, value: Option<&figment::value::Value>, shape: &Shape, path: &str) {
        let table = value.and_then(|value| value.as_dict());
        match shape {
            Shape::Table(keys) => self.keys(table, keys.iter(), path),
            Shape::Map(_, of) => {
                for (name, value) in table.into_iter().flatten() {
                    self.shape(Some(value), of, &join(path, name));
                }
            }
            Shape::Tagged { tag, variants } => match table.and_then(|table| table.get(*tag)).and_then(|v| v.as_str()) {
                Some(word) => {
                    let lists = variants.iter().find(|(known, _)| *known == word).map_or(&[][..], |(_, lists)| lists);
                    self.keys(table, lists.iter().flat_map(|list| *list), path);
                }
                None => {
                    let words: Vec<_> = variants.iter().map(|(word, _)| format!("{word:?}")).collect();
                    self.lacking(&join(path, tag), path, format!("missing; allowed: {}", words.join(", ")));
                }
            },
            _ => {}
        }
    }

    fn keys<'k>(&mut self, table: Option<&figment::value::Dict>, keys: impl Iterator<Item = &'k Key>, path: &str) {
        for key in keys {
            let (value, inner) = (table.and_then(|table| table.get(key.name)), join(path, key.name));
            match (&key.shape, value) {
                (Shape::Table(_), None) if key.required => self.shape(None, &key.shape, &inner),
                (_, None) if key.required => self.lacking(&inner, path, lacks(key)),
                (_, Some(_)) => self.shape(value, &key.shape, &inner),
                (_, None) => {}
            }
        }
    }

    fn lacking(&mut self, key: &str, table: &str, text: String) {
        let mut table = table;
        let place = loop {
            match self.places.get(table) {
                Some(place) => break place,
                None => match table.rsplit_once('.') {
                    Some((parent, _)) => table = parent,
                    None => break self.main,
                },
            }
        };
        self.found.push(Mistake { place: place.clone(), key: key.to_owned(), text });
    }
}

fn lacks(key: &Key) -> String {
    format!("missing; allowed: {}", key.shape.allowed())
}

fn has(lists: &[&[Key]], name: &str) -> bool {
    lists.iter().flat_map(|list| *list).any(|key| key.name == name)
}

fn not_a_word(found: &Value, words: &[&str]) -> String {
    let allowed = words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
    let near = match found {
        Value::Text(text) => nearest(text, words).map_or_else(String::new, |near| format!("; did you mean {near:?}?")),
        _ => String::new(),
    };
    format!("found {}; allowed: {allowed}{near}", found.describe())
}

/// The known word that was probably meant, if one is near enough.
fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    let name = name.to_lowercase();
    let scored = known.iter().map(|word| (strsim::damerau_levenshtein(&name, &word.to_lowercase()), *word));
    let (distance, word) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + name.chars().count().max(word.len()) / 4).then_some(word)
}

fn join(path: &str, name: &str) -> String {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let name = if plain { name.to_owned() } else { format!("{name:?}") };
    if path.is_empty() { name } else { format!("{path}.{name}") }
}
