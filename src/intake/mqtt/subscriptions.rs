//! The file that remembers which filters our session at the broker holds: `subscriptions-NAME.json` beside the outbox's
//! own small files, replaced as a whole and synced. If it is lost or unreadable, nothing is known, and everything is
//! subscribed again.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::session::Subscriptions;

/// See the module's description.
#[derive(Debug, Clone)]
pub(super) struct SubscriptionFile {
    path: PathBuf,
}

impl SubscriptionFile {
    /// The file of one source. Its name has no characters that a file name could not have.
    pub(super) fn new(directory: &Path, source: &str) -> Self {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let name = if source.chars().all(plain) {
            source.to_owned()
        } else {
            format!("x.{}", data_encoding::HEXLOWER.encode(source.as_bytes()))
        };
        Self { path: directory.join(format!("subscriptions-{name}.json")) }
    }

    /// What was stored last; nothing if there is no readable file.
    pub(super) fn load(&self) -> Subscriptions {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    log::warn!("{}: {error}; subscribing to everything again", self.path.display());
                }
                return Subscriptions::default();
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            log::warn!("{} is damaged ({error}); subscribing to everything again", self.path.display());
            Subscriptions::default()
        })
    }

    /// Stores durably. Blocks the thread.
    pub(super) fn store(&self, subscriptions: &Subscriptions) -> std::io::Result<()> {
        let text = serde_json::to_vec(subscriptions)?;
        let new = self.path.with_extension("json.new");
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        match self.path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Qos;

    #[test]
    fn what_was_stored_comes_back_and_damage_means_unknown() {
        let directory = tempfile::tempdir().unwrap();
        let file = SubscriptionFile::new(directory.path(), "plant/1");
        assert_eq!(file.load(), Subscriptions::default());
        let known = Subscriptions::granted(&[("a/#".to_owned(), Qos::AtLeastOnce)]);
        file.store(&known).unwrap();
        assert_eq!(file.load(), known);
        assert_eq!(SubscriptionFile::new(directory.path(), "plant").load(), Subscriptions::default());
        std::fs::write(&file.path, "{").unwrap();
        assert_eq!(file.load(), Subscriptions::default());
    }
}
