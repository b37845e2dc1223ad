//! Reads the configuration: `fieldpost.toml`, `conf.d/*.toml` beside it by name, variables `FIELDPOST_SECTION__KEY`,
//! arguments `--set section.key=value`; later ones win. figment merges; every layer is first compared with the schema,
//! so that one run names every mistake with its file and line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::Value as FigmentValue;
use figment::{Figment, Provider as _};

use super::layer::Layer;
use super::mistake::{Mistake, Mistakes, Place};
use super::{Config, check, rules};

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/fieldpost/fieldpost.toml";

/// From where to load; kept for reloading.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The main file.
    pub path: PathBuf,
    /// `section.key=value`, later ones win.
    pub set: Vec<String>,
}

/// A configuration that passed every check.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// It.
    pub config: Config,
    /// What is legal but deserves a look.
    pub warnings: Vec<Mistake>,
}

/// Loads and checks, with the variables of this process.
pub fn load(origin: &Origin) -> Result<Loaded, Mistakes> {
    load_with(origin, own_variables())
}

/// Loads and checks with these variables.
pub fn load_with(origin: &Origin, variables: impl Iterator<Item = (String, String)>) -> Result<Loaded, Mistakes> {
    let Collected { layers, places, mut mistakes } = Collected::collect(origin, variables);
    let main = Place::file(&origin.path);
    let mut warnings = Vec::new();
    if !mistakes.is_empty() {
        if let Some(config) = extract_around(&layers) {
            rules::check(&config, &places, &main, &mut mistakes, &mut warnings);
        }
        return Err(in_order(mistakes, &layers));
    }
    let config = match extract(&layers) {
        Ok(config) => config,
        // Reached only where the schema and the structs disagree.
        Err(text) => return Err(Mistakes(vec![Mistake { place: main, key: String::new(), text }])),
    };
    rules::check(&config, &places, &main, &mut mistakes, &mut warnings);
    if mistakes.is_empty() { Ok(Loaded { config, warnings }) } else { Err(in_order(mistakes, &layers)) }
}

/// Whose configuration this is, as far as it can be told around mistakes: for commands that look for a daemon, which runs
/// on while somebody edits.
#[derive(Debug, Clone)]
pub struct Glimpse {
    /// `agent.id`, if it is there and legal.
    pub agent_id: Option<String>,
    /// `agent.state_dir`
    pub state_dir: PathBuf,
}

/// Reads what [`Glimpse`] needs.
pub fn glimpse(origin: &Origin) -> Option<Glimpse> {
    let collected = Collected::collect(origin, own_variables());
    let agent_id = merge(&collected.layers).find_value("agent.id").ok().and_then(|value| value.into_string());
    Some(Glimpse { agent_id, state_dir: extract_around(&collected.layers)?.agent.state_dir })
}

/// Sections in which a mistake says nothing about whose outbox is meant.
const BESIDE_THE_POINT: [&str; 3] = ["sources", "delivery", "outbox"];

/// Whose configuration this is, for commands that change something: around mistakes in the files' other sections only. Where
/// a misspelt argument or an unreadable file would leave the default directory, nothing may be changed.
pub fn target(origin: &Origin) -> Result<Glimpse, Mistakes> {
    let Collected { layers, mut mistakes, .. } = Collected::collect(origin, own_variables());
    mistakes.retain(|mistake| {
        let section = mistake.key.split('.').next().unwrap_or_default();
        !(matches!(mistake.place, Place::Line(..)) && BESIDE_THE_POINT.contains(&section))
    });
    if !mistakes.is_empty() {
        return Err(in_order(mistakes, &layers));
    }
    let config = extract_around(&layers).ok_or_else(|| {
        let text = "agent.state_dir cannot be told".to_owned();
        Mistakes(vec![Mistake { place: Place::file(&origin.path), key: String::new(), text }])
    })?;
    Ok(Glimpse { agent_id: Some(config.agent.id), state_dir: config.agent.state_dir })
}

/// What is not UTF-8 shows as such in the mistake it makes.
fn own_variables() -> impl Iterator<Item = (String, String)> {
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (lossy(name), lossy(value)))
}

/// All layers with what is wrong in each taken out.
struct Collected {
    layers: Vec<Layer>,
    places: BTreeMap<String, Place>,
    mistakes: Vec<Mistake>,
}

impl Collected {
    fn collect(origin: &Origin, variables: impl Iterator<Item = (String, String)>) -> Self {
        let mut mistakes = Vec::new();
        let mut layers = read_files(&origin.path, &mut mistakes);
        let readable = mistakes.is_empty();
        let from_variables = Layer::from_variables(variables, &layers, &mut mistakes);
        layers.push(from_variables);
        layers.push(Layer::from_arguments(&origin.set, &mut mistakes));

        let mut places = BTreeMap::new();
        for layer in &layers {
            layer.note_places(&mut places);
        }
        let merged = merge(&layers);
        let lookup = |path: &str| merged.find_value(path).ok().and_then(|value| value.into_string());
        for layer in &mut layers {
            check::layer(layer, &lookup, &mut mistakes);
        }
        // What stands in a file that could not be read is not missing.
        if readable {
            let dict = merged.data().unwrap_or_default().remove(&figment::Profile::Default).unwrap_or_default();
            mistakes.extend(check::missing(&dict, &places, &Place::file(&origin.path)));
        }
        Self { layers, places, mistakes }
    }
}

/// In the order in which they were read: by file and line, then variables, then arguments.
fn in_order(mut mistakes: Vec<Mistake>, layers: &[Layer]) -> Mistakes {
    mistakes.sort_by_key(|mistake| match &mistake.place {
        Place::Line(path, line) => {
            (layers.iter().position(|layer| layer.path.as_ref() == Some(path)).unwrap_or(0), *line)
        }
        Place::Variable(_) => (layers.len(), 0),
        Place::Argument(_) => (layers.len() + 1, 0),
    });
    Mistakes(mistakes)
}

fn merge(layers: &[Layer]) -> Figment {
    layers.iter().fold(Figment::new(), |figment, layer| figment.merge(layer))
}

/// The typed configuration.
fn extract(layers: &[Layer]) -> Result<Config, String> {
    merge(layers).extract().map_err(|error| error.to_string())
}

/// The typed configuration around mistakes: what was taken out as wrong or is missing gets a stand-in, and sources that
/// cannot be read are left out, so that the remaining rules can be checked in the same run.
fn extract_around(layers: &[Layer]) -> Option<Config> {
    let stand_in = ["agent.id=unknown".to_owned(), "delivery.kafka.bootstrap_servers=unknown:1".to_owned()];
    let stand_in = Layer::from_arguments(&stand_in, &mut Vec::new());
    let figment = layers.iter().fold(Figment::from(&stand_in), |figment, layer| figment.merge(layer));
    let mut dict = figment.data().ok()?.remove(&figment::Profile::Default)?;
    let sources = dict.remove("sources").and_then(|sources| sources.into_dict()).unwrap_or_default();
    let mut config: Config = FigmentValue::from(dict).deserialize().ok()?;
    let typed = sources.into_iter().filter_map(|(name, source)| Some((name, source.deserialize().ok()?)));
    config.sources = typed.collect();
    Some(config)
}

/// The layers of the main file and of those beside it.
fn read_files(path: &Path, mistakes: &mut Vec<Mistake>) -> Vec<Layer> {
    let mut paths = vec![path.to_owned()];
    let directory = path.parent().unwrap_or(Path::new(".")).join("conf.d");
    match std::fs::read_dir(&directory) {
        Ok(entries) => {
            let entries = entries.filter_map(|entry| Some(entry.ok()?.path()));
            let mut beside: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
            beside.sort();
            paths.extend(beside);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => mistakes.push(unreadable(&directory, &error)),
    }
    let mut read = |path: &PathBuf| match std::fs::read_to_string(path) {
        Ok(text) => Some(Layer::from_toml(path, &text, mistakes)),
        Err(error) => {
            mistakes.push(unreadable(path, &error));
            None
        }
    };
    paths.iter().filter_map(&mut read).collect()
}

fn unreadable(path: &Path, error: &std::io::Error) -> Mistake {
    Mistake { place: Place::file(path), key: String::new(), text: format!("cannot be read: {error}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load_text(text: &str, variable: &str, argument: &str) -> Result<Loaded, Mistakes> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fieldpost.toml");
        std::fs::write(&path, text).unwrap();
        let variables = [("FIELDPOST_OUTBOX__MAX_BYTES".to_owned(), variable.to_owned())];
        load_with(&Origin { path, set: vec![argument.to_owned()] }, variables.into_iter())
    }

    /// Lines from which broken files are made: headers, settings right and wrong, and no TOML at all.
    fn line() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "agent",
            "outbox",
            "delivery.kafka",
            "sources.a",
            "sources",
            "sources.a.decode",
            "x",
        ]);
        let key = prop::sample::select(vec![
            "id",
            "type",
            "decode",
            "max_bytes",
            "subscribe",
            "tls",
            "framing",
            "baud",
            "a.b",
        ]);
        let value = prop::sample::select(vec![
            "1",
            "\"mqtt\"",
            "{ format = 1 }",
            "[[1], {}]",
            "1e400",
            "0xffff_ffff_ffff_ffff_f",
            "1979-05-27",
            "nan",
        ]);
        prop_oneof![
            name.prop_map(|name| format!("[{name}]")),
            (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
            ".{0,12}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever stands there: an answer, never a panic, and never "good" without an agent id.
        #[test]
        fn any_text_is_answered(lines in prop::collection::vec(line(), 0..12), other in ".{0,20}") {
            let mistakes = load_text(&lines.join("\n"), &other, &other).unwrap_err();
            prop_assert!(!mistakes.0.is_empty());
        }
    }
}
