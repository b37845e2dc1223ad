//! The jars that `scripts/setup` keeps in the cache, and the Java to run them with.

use std::path::{Path, PathBuf};

use super::super::{BrokerError, cache_dir};

/// Names the version and all that is fetched. A cache is ours only if it was made by this very file.
const POM: &str = include_str!("../../../../scripts/kafka/pom.xml");

/// A directory with Kafka's jars, made by `scripts/setup`.
#[derive(Debug, Clone)]
pub struct Jars {
    dir: PathBuf,
    java: PathBuf,
}

impl Jars {
    /// Looks in the cache. Missing, or made for another version: [`BrokerError::Missing`].
    pub fn find() -> Result<Self, BrokerError> {
        Self::find_in(&cache_dir())
    }

    fn find_in(cache: &Path) -> Result<Self, BrokerError> {
        let java = cache.join("java");
        if !java.exists() {
            return Err(BrokerError::Missing("a Java of version 17 or newer".to_owned()));
        }
        // `pom.xml` is there only in a directory that is complete.
        let of_this_pom = |dir: &PathBuf| std::fs::read(dir.join("pom.xml")).is_ok_and(|text| text == POM.as_bytes());
        let entries = std::fs::read_dir(cache).map_err(BrokerError::io(format!("reading {}", cache.display())))?;
        let dir = entries
            .filter_map(Result::ok)
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.starts_with("kafka-") && !name.ends_with(".part")
            })
            .map(|entry| entry.path())
            .find(of_this_pom)
            .ok_or_else(|| BrokerError::Missing(format!("Apache Kafka {}", Self::version())))?;
        Ok(Self { dir, java })
    }

    /// The version of Kafka that is used.
    pub fn version() -> &'static str {
        let (_, rest) = POM.split_once("<kafka.version>").expect("the pom names the version");
        rest.split_once('<').expect("the pom is well formed").0
    }

    /// The Java to run.
    pub(super) fn java(&self) -> &Path {
        &self.java
    }

    pub(super) fn class_path(&self) -> String {
        format!("{}/jars/*", self.dir.display())
    }

    /// A directory as Kafka's own tool has formatted it for a node.
    pub(super) fn formatted(&self) -> PathBuf {
        self.dir.join("formatted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_made_by_another_pom_is_not_used() {
        let cache = tempfile::tempdir().unwrap();
        let missing = Jars::find_in(cache.path()).unwrap_err().to_string();
        assert!(missing.contains("Java") && missing.contains("make setup"), "{missing}");
        std::fs::write(cache.path().join("java"), "").unwrap();
        let dir = cache.path().join("kafka-4");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("pom.xml"), POM.replace("slf4j", "other")).unwrap();
        assert!(matches!(Jars::find_in(cache.path()), Err(BrokerError::Missing(_))));
        std::fs::write(dir.join("pom.xml"), POM).unwrap();
        assert_eq!(Jars::find_in(cache.path()).unwrap().dir, dir);
    }

    #[test]
    fn the_version_is_read_from_the_pom() {
        assert!(Jars::version().starts_with("4."), "{}", Jars::version());
    }
}
