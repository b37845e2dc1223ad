//! The ledger record, and what it means for who we are. Pure.
//!
//! One record per transaction, last in it, in a compacted topic, key = agent id. Its value is JSON so that any consumer
//! of this one topic sees the delivered position of the whole fleet:
//!
//! ```json
//! {"v":1,"incarnation":"32 hex","prev":null,"session":12,"nonce":"16 hex","seg":"16 hex","upto":184467,"count":500,
//!  "parked":{},"at":"2026-11-21T08:00:00Z"}
//! ```
//!
//! The ledger, not the local disk, is the truth about what was delivered. [`decide`] compares it with the outbox's own
//! identity, in this order: cluster id; no ledger record; an incarnation of ours (nonce, then fork, then behind); a
//! foreign one. Comparing the hardware's fingerprint comes before the ledger and is not built yet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::delivery::OnClusterChange;
use crate::outbox::{Identity, IdentityChange, Positions};
use crate::record::{Incarnation, Nonce, Sequence};

/// One ledger record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LedgerRecord {
    /// Whose sequences `upto` counts.
    pub(crate) incarnation: Incarnation,
    /// The incarnation before it.
    pub(crate) previous: Option<Incarnation>,
    /// Number of the delivery session that wrote it.
    pub(crate) session: u64,
    /// Nonce of that session.
    pub(crate) nonce: Nonce,
    /// Segment of the reading `upto`.
    pub(crate) segment: Nonce,
    /// Last sequence delivered, inclusive.
    pub(crate) upto: Sequence,
    /// Records in the transaction.
    pub(crate) count: u64,
    /// Parked topics and the sequence they have reached.
    pub(crate) parked: BTreeMap<String, u64>,
    /// When it was written, RFC 3339.
    pub(crate) at: String,
}

#[derive(Serialize, Deserialize)]
struct Json {
    v: u32,
    incarnation: String,
    prev: Option<String>,
    session: u64,
    nonce: String,
    seg: String,
    upto: u64,
    count: u64,
    #[serde(default)]
    parked: BTreeMap<String, u64>,
    #[serde(default)]
    at: String,
}

impl LedgerRecord {
    /// The value of the record.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let json = Json {
            v: 1,
            incarnation: self.incarnation.to_hex(),
            prev: self.previous.map(Incarnation::to_hex),
            session: self.session,
            nonce: self.nonce.to_hex(),
            seg: self.segment.to_hex(),
            upto: self.upto.0,
            count: self.count,
            parked: self.parked.clone(),
            at: self.at.clone(),
        };
        serde_json::to_vec(&json).expect("numbers and text always become JSON")
    }

    /// Reads a value back. An unreadable one is an error: guessing a position would lose or double.
    pub(crate) fn from_json(value: &[u8]) -> Result<Self, String> {
        let json: Json = serde_json::from_slice(value).map_err(|error| format!("not a ledger record: {error}"))?;
        if json.v != 1 {
            return Err(format!("a ledger record of version {}, this program reads version 1", json.v));
        }
        let incarnation = |text: &str| Incarnation::from_hex(text).ok_or_else(|| format!("bad incarnation {text:?}"));
        let nonce = |text: &str| Nonce::from_hex(text).ok_or_else(|| format!("bad nonce {text:?}"));
        Ok(Self {
            incarnation: incarnation(&json.incarnation)?,
            previous: json.prev.as_deref().map(incarnation).transpose()?,
            session: json.session,
            nonce: nonce(&json.nonce)?,
            segment: nonce(&json.seg)?,
            upto: Sequence(json.upto),
            count: json.count,
            parked: json.parked,
            at: json.at,
        })
    }
}

/// Where delivery goes on, and what must be done before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resume {
    /// Everything through here is delivered.
    pub(crate) after: Sequence,
    /// Something beyond `after` may already be visible: read the tails before sending.
    pub(crate) in_doubt: bool,
    /// In doubt is everything since the partition hints, not only what one transaction may hold.
    pub(crate) all_partitions: bool,
    /// To be stored durably before the first begin.
    pub(crate) changes: Vec<IdentityChange>,
    /// This incarnation has not introduced itself: the previous one, and how far it got.
    pub(crate) introduce: Option<(Incarnation, Sequence)>,
    /// To be shown until the next recovery.
    pub(crate) alarm: Option<String>,
}

/// What the identity check says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Deliver.
    Resume(Resume),
    /// Keep buffering, do not deliver; the text says why and what to do.
    Hold(String),
}

/// What is known at recovery.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    /// Who this outbox is.
    pub(crate) identity: &'a Identity,
    /// Where it stands.
    pub(crate) positions: Positions,
    /// Id of the cluster, if it tells.
    pub(crate) cluster_id: Option<&'a str>,
    /// The newest ledger record of this agent.
    pub(crate) ledger: Option<&'a LedgerRecord>,
    /// A transaction of this process ended without a known outcome.
    pub(crate) unclean_here: bool,
    /// The setting.
    pub(crate) on_cluster_change: OnClusterChange,
}

/// The identity check, see the head of this file.
pub(crate) fn decide(facts: &Facts<'_>) -> Decision {
    let Facts { identity, cluster_id, .. } = *facts;
    let stored_cluster = identity.cluster_id.as_deref();
    let changed = matches!((stored_cluster, cluster_id), (Some(old), Some(new)) if old != new);
    let mut changes = Vec::new();
    if let Some(new) = cluster_id.filter(|new| stored_cluster != Some(*new)) {
        changes.push(IdentityChange::Cluster(new.to_owned()));
    }
    if changed {
        let (old, new) = (stored_cluster.unwrap_or_default(), cluster_id.unwrap_or_default());
        return match facts.on_cluster_change {
            OnClusterChange::Hold => Decision::Hold(format!(
                "cluster_changed: this is cluster {new}, before it was {old}. Readings are kept. To deliver here, set \
                 delivery.on_cluster_change to \"continue\" (go on where the old cluster stopped) or \"resend\" (send all \
                 that is still held)"
            )),
            OnClusterChange::Continue | OnClusterChange::Resend => on_new_cluster(facts, changes),
        };
    }
    match facts.ledger {
        None => without_ledger(facts, changes),
        Some(ledger) if is_ours(identity, ledger) => with_our_ledger(facts, ledger, changes),
        Some(ledger) => with_foreign_ledger(facts, ledger, changes),
    }
}

fn is_ours(identity: &Identity, ledger: &LedgerRecord) -> bool {
    identity.incarnation == ledger.incarnation
        || identity.known.contains(&ledger.incarnation)
        || identity.segments.contains(&ledger.segment)
}

fn in_doubt(facts: &Facts<'_>) -> bool {
    facts.unclean_here || (facts.identity.ever_began && !facts.identity.clean)
}

fn resume(facts: &Facts<'_>, after: Sequence, changes: Vec<IdentityChange>) -> Resume {
    Resume { after, in_doubt: in_doubt(facts), all_partitions: false, changes, introduce: None, alarm: None }
}

/// The owner allowed another cluster. What its ledger knows of us holds; else the setting decides.
fn on_new_cluster(facts: &Facts<'_>, changes: Vec<IdentityChange>) -> Decision {
    let ours = facts.ledger.filter(|ledger| is_ours(facts.identity, ledger));
    let local = facts.positions.committed;
    let after = match (facts.on_cluster_change, ours) {
        // Nothing below the committed position is held once it is trimmed, so this is all there is.
        (OnClusterChange::Resend, Some(ledger)) => ledger.upto.min(local),
        (_, Some(ledger)) => ledger.upto.max(local),
        (_, None) => local,
    };
    let mut resume = resume(facts, after, changes);
    resume.all_partitions = true;
    Decision::Resume(resume)
}

fn without_ledger(facts: &Facts<'_>, changes: Vec<IdentityChange>) -> Decision {
    let after = facts.positions.committed;
    let mut resume = resume(facts, after, changes);
    let nothing_was_delivered = after == Sequence(0);
    if !nothing_was_delivered && resume.in_doubt {
        resume.all_partitions = true;
        resume.alarm = Some(format!(
            "ledger_lost: the ledger topic holds no record of this agent, the outbox says that readings through {after} \
             were delivered. What may lie beyond is looked up in the data topics and sent again if it is not found"
        ));
    }
    Decision::Resume(resume)
}

fn with_our_ledger(facts: &Facts<'_>, ledger: &LedgerRecord, changes: Vec<IdentityChange>) -> Decision {
    let identity = facts.identity;
    let nonce_known = identity.session_nonces.contains(&ledger.nonce);
    // With a lost `state` file the identity comes from a snapshot: then the segment stands in for the nonces.
    let state_was_lost = identity.session_nonces == [Nonce::default(); 2];
    let segment_known = state_was_lost && identity.segments.contains(&ledger.segment);
    if !nonce_known && !segment_known {
        return Decision::Hold(format!(
            "identity_conflict: another gateway delivers under this agent id from a copy of this outbox (session nonce {} \
             in the ledger is none of ours). Readings are kept. Stop the other one; if this one is the copy, give it its \
             own agent.id and a new state directory",
            ledger.nonce.to_hex()
        ));
    }
    if ledger.upto > facts.positions.durable {
        return Decision::Hold(format!(
            "fork: the ledger says that readings through {} were delivered, this outbox ends at {}: it was rolled back (an \
             old image, a snapshot, a disk that lost writes). Readings are kept; sending them could reuse numbers that are \
             taken",
            ledger.upto, facts.positions.durable
        ));
    }
    if ledger.upto < facts.positions.committed {
        return Decision::Hold(format!(
            "ledger_behind: the ledger ends at {}, this outbox knows that {} was delivered: the cluster lost data or was \
             restored from a backup. Readings are kept; sending on would hide what is missing",
            ledger.upto, facts.positions.committed
        ));
    }
    Decision::Resume(resume(facts, ledger.upto, changes))
}

fn with_foreign_ledger(facts: &Facts<'_>, ledger: &LedgerRecord, mut changes: Vec<IdentityChange>) -> Decision {
    let identity = facts.identity;
    let committed = facts.positions.committed;
    let is_previous = identity.previous == Some(ledger.incarnation);
    if is_previous && committed > Sequence(0) {
        // The outbox lived on under a new incarnation and sequences count on: then the two positions are comparable.
        if ledger.upto == committed {
            return Decision::Resume(resume(facts, committed, changes));
        }
        return Decision::Hold(format!(
            "ledger_behind: the ledger still shows the previous incarnation {} at {}, this outbox delivered through \
             {committed} under its own: the cluster lost data or was restored. Readings are kept",
            ledger.incarnation.epoch(),
            ledger.upto
        ));
    }
    if !is_previous && identity.ever_began {
        return Decision::Hold(format!(
            "identity_conflict: another outbox ({}) delivers under this agent id. Readings are kept. Every gateway needs its \
             own agent.id; stop the other one or change the id of one of them",
            ledger.incarnation.epoch()
        ));
    }
    if !is_previous {
        changes.push(IdentityChange::Previous(ledger.incarnation));
    }
    let mut resume = resume(facts, committed, changes);
    resume.introduce = Some((ledger.incarnation, ledger.upto));
    Decision::Resume(resume)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
