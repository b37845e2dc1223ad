//! What a new configuration changes in a running daemon. Plain decisions; `agent` carries them out.

use std::fmt;

use crate::config::Config;

/// What to do, and what has to wait for a restart.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Sources to start.
    pub added: Vec<String>,
    /// Sources to stop.
    pub removed: Vec<String>,
    /// Sources to restart: their table changed.
    pub changed: Vec<String>,
    /// Whether the log filter changed.
    pub log: bool,
    /// Changed settings that only a restart takes.
    pub restart: Vec<String>,
}

/// Compares the running configuration with a new one.
pub fn plan(old: &Config, new: &Config) -> Plan {
    let added = new.sources.keys().filter(|name| !old.sources.contains_key(*name)).cloned().collect();
    let removed = old.sources.keys().filter(|name| !new.sources.contains_key(*name)).cloned().collect();
    let differs =
        |(name, source): &(&String, &crate::config::Source)| new.sources.get(*name).is_some_and(|n| n != *source);
    let changed = old.sources.iter().filter(differs).map(|(name, _)| name.clone()).collect();
    Plan { added, removed, changed, log: old.agent.log != new.agent.log, restart: needs_restart(old, new) }
}

fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    let leaves = |config: &Config| {
        let mut config = config.clone();
        config.sources.clear();
        config.agent.log.clear();
        let mut leaves = std::collections::BTreeMap::new();
        flatten("", &serde_json::to_value(&config).unwrap_or_default(), &mut leaves);
        leaves
    };
    let (old, new) = (leaves(old), leaves(new));
    let mut keys: Vec<_> = old.keys().chain(new.keys()).filter(|key| old.get(*key) != new.get(*key)).cloned().collect();
    keys.sort();
    keys.dedup();
    keys
}

fn flatten(path: &str, value: &serde_json::Value, leaves: &mut std::collections::BTreeMap<String, serde_json::Value>) {
    match value {
        serde_json::Value::Object(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, leaves);
            }
        }
        leaf => {
            leaves.insert(path.to_owned(), leaf.clone());
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources = [("added", &self.added), ("removed", &self.removed), ("changed", &self.changed)];
        let mut parts: Vec<_> = sources
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("sources {what}: {}", names.join(", ")))
            .collect();
        if self.log {
            parts.push("log filter changed".to_owned());
        }
        if !self.restart.is_empty() {
            parts.push(format!("needs a restart to take effect: {}", self.restart.join(", ")));
        }
        if parts.is_empty() { f.write_str("nothing changed") } else { f.write_str(&parts.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let text = format!("{text}\n[delivery.kafka]\nbootstrap_servers = [\"a:1\"]\n");
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn only_what_changed_is_touched() {
        let serial = |name: &str, baud: u32| {
            format!("[sources.{name}]\ntype = \"serial\"\npath = \"/dev/{name}\"\nbaud = {baud}\n")
        };
        let old = config(&format!("[agent]\nid = \"x\"\n{}{}{}", serial("a", 1), serial("b", 1), serial("c", 1)));
        let new = config(&format!(
            "[agent]\nid = \"x\"\nlog = \"debug\"\n{}{}{}",
            serial("a", 1),
            serial("b", 2),
            serial("d", 1)
        ));
        let plan = plan(&old, &new);
        assert_eq!((plan.added, plan.removed, plan.changed), (vec!["d".into()], vec!["c".into()], vec!["b".into()]));
        assert!(plan.log && plan.restart.is_empty());
    }

    #[test]
    fn what_needs_a_restart_is_named() {
        let old = config("[agent]\nid = \"x\"\n");
        let new = config("[outbox]\nmax_bytes = \"2GiB\"\n[agent]\nid = \"x\"\nstate_dir = \"/y\"\n");
        let plan = plan(&old, &new);
        assert_eq!(plan.restart, ["agent.state_dir", "outbox.max_bytes"]);
        assert_eq!(plan.to_string(), "needs a restart to take effect: agent.state_dir, outbox.max_bytes");
        assert_eq!(super::plan(&old, &old).to_string(), "nothing changed");
    }
}
