//! `fieldpost version`

use clap::Args;
use serde::Serialize;

use super::{Exit, Failure, json, show};

/// Print the version
#[derive(Debug, Args)]
pub(super) struct Version {
    /// As JSON, with the versions of what it is built on
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Versions {
    version: &'static str,
    librdkafka: String,
    target: String,
}

impl Version {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let (_, librdkafka) = rdkafka::util::get_rdkafka_version();
        let versions = Versions {
            version: env!("CARGO_PKG_VERSION"),
            librdkafka,
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        };
        if self.json {
            show(&json(&versions)?)?;
        } else {
            show(&format!(
                "fieldpost {} (librdkafka {}, {})\n",
                versions.version, versions.librdkafka, versions.target
            ))?;
        }
        Ok(Exit::Done)
    }
}
