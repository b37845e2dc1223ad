//! Reads the configuration: `fieldpost.toml`, `conf.d/*.toml` beside it by name, variables `FIELDPOST_SECTION__KEY`,
//! arguments `--set section.key=value`; later ones win. figment merges; every layer is first compared with the schema,
//! so that one run names every mistake with its file and line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    load_with(origin, variables)
}

/// Loads and checks with these variables.
pub fn load_with(origin: &Origin, variables: impl Iterator<Item = (String, String)>) -> Result<Loaded, Mistakes> {
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
    let main = Place::file(&origin.path);
    if readable {
        let dict = merged.data().unwrap_or_default().remove(&figment::Profile::Default).unwrap_or_default();
        mistakes.extend(check::missing(&dict, &places, &main));
    }

    let mut warnings = Vec::new();
    match extract(&layers, mistakes.is_empty()) {
        Ok(config) => rules::check(&config, &places, &main, &mut mistakes, &mut warnings),
        Err(text) if mistakes.is_empty() => mistakes.push(Mistake { place: main, key: String::new(), text }),
        Err(_) => {}
    }
    match (mistakes.is_empty(), extract(&layers, true)) {
        (true, Ok(config)) => Ok(Loaded { config, warnings }),
        _ => Err(Mistakes(mistakes)),
    }
}

fn merge(layers: &[Layer]) -> Figment {
    layers.iter().fold(Figment::new(), |figment, layer| figment.merge(layer))
}

/// The typed configuration. With mistakes in it, what was taken out as wrong or is missing gets a stand-in, so that the
/// remaining rules can be checked in the same run.
fn extract(layers: &[Layer], whole: bool) -> Result<Config, String> {
    let figment = if whole {
        merge(layers)
    } else {
        let stand_in = Layer::from_arguments(
            &["agent.id=unknown".to_owned(), "delivery.kafka.bootstrap_servers=unknown:1".to_owned()],
            &mut Vec::new(),
        );
        layers.iter().fold(Figment::from(&stand_in), |figment, layer| figment.merge(layer))
    };
    figment.extract().map_err(|error| error.to_string())
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
