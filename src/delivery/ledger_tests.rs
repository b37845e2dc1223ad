use super::*;

const OURS: Incarnation = Incarnation([1; 16]);
const OLD: Incarnation = Incarnation([2; 16]);
const FOREIGN: Incarnation = Incarnation([3; 16]);
const OWN_NONCE: Nonce = Nonce([11; 8]);
const SEGMENT: Nonce = Nonce([5; 8]);

fn identity() -> Identity {
    Identity {
        incarnation: OURS,
        previous: None,
        known: vec![OURS],
        ever_began: true,
        segment: SEGMENT,
        segments: vec![SEGMENT],
        session_nonces: [Nonce([10; 8]), OWN_NONCE],
        session_number: 3,
        clean: true,
        cluster_id: Some("cluster".to_owned()),
    }
}

fn ledger(incarnation: Incarnation, upto: u64) -> LedgerRecord {
    LedgerRecord {
        incarnation,
        previous: None,
        session: 2,
        nonce: OWN_NONCE,
        segment: Nonce([99; 8]),
        upto: Sequence(upto),
        count: 5,
        parked: BTreeMap::new(),
        at: "2026-11-21T08:00:00Z".to_owned(),
    }
}

fn check(identity: &Identity, ledger: Option<&LedgerRecord>, committed: u64, durable: u64) -> Decision {
    check_on(identity, ledger, committed, durable, "cluster", OnClusterChange::Hold)
}

fn check_on(
    identity: &Identity,
    ledger: Option<&LedgerRecord>,
    committed: u64,
    durable: u64,
    cluster: &str,
    on_cluster_change: OnClusterChange,
) -> Decision {
    decide(&Facts {
        identity,
        positions: Positions { committed: Sequence(committed), durable: Sequence(durable) },
        cluster_id: Some(cluster),
        ledger,
        unclean_here: false,
        on_cluster_change,
    })
}

fn resumes(decision: Decision) -> Resume {
    match decision {
        Decision::Resume(resume) => resume,
        Decision::Hold(text) => panic!("held: {text}"),
    }
}

fn holds(decision: Decision, word: &str) {
    match decision {
        Decision::Hold(text) => assert!(text.starts_with(word), "{text}"),
        Decision::Resume(resume) => panic!("resumed: {resume:?}"),
    }
}

#[test]
fn the_record_reads_back_and_has_the_documented_form() {
    let mut record = ledger(OURS, 184_467);
    record.previous = Some(OLD);
    record.parked.insert("telemetry".to_owned(), 7);
    assert_eq!(LedgerRecord::from_json(&record.to_json()).unwrap(), record);
    let text = String::from_utf8(ledger(OURS, 7).to_json()).unwrap();
    assert!(text.starts_with(r#"{"v":1,"incarnation":"01010101010101010101010101010101","prev":null,"session":2,"#));
    for bad in ["", "{}", "null", &text.replace("\"v\":1", "\"v\":2"), &text.replace("\"0101", "\"01")] {
        assert!(LedgerRecord::from_json(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn first_start_begins_at_one_with_nothing_in_doubt() {
    let identity = Identity { ever_began: false, cluster_id: None, session_nonces: Default::default(), ..identity() };
    let resume = resumes(check(&identity, None, 0, 500));
    assert_eq!((resume.after, resume.in_doubt, resume.introduce), (Sequence(0), false, None));
    assert_eq!(resume.changes, [IdentityChange::Cluster("cluster".to_owned())]);
}

#[test]
fn goes_on_after_the_ledger_even_when_the_local_position_is_older() {
    let resume = resumes(check(&identity(), Some(&ledger(OURS, 90)), 40, 500));
    assert_eq!((resume.after, resume.in_doubt, resume.alarm), (Sequence(90), false, None));
}

#[test]
fn an_unclean_start_and_an_unclean_transaction_are_in_doubt() {
    let identity = Identity { clean: false, ..identity() };
    assert!(resumes(check(&identity, Some(&ledger(OURS, 90)), 40, 500)).in_doubt);
    assert!(resumes(check(&identity, None, 0, 500)).in_doubt, "the very first transaction may be half visible");
}

#[test]
fn an_older_incarnation_of_this_outbox_is_ours() {
    let identity = Identity { known: vec![OLD, OURS], ..identity() };
    assert_eq!(resumes(check(&identity, Some(&ledger(OLD, 60)), 40, 500)).after, Sequence(60));
}

#[test]
fn a_wiped_outbox_remembers_its_predecessor_and_introduces_itself() {
    let fresh = Identity { ever_began: false, ..identity() };
    let resume = resumes(check(&fresh, Some(&ledger(FOREIGN, 9_000)), 0, 10));
    assert_eq!(resume.after, Sequence(0), "positions of two incarnations are never compared");
    assert_eq!(resume.changes, [IdentityChange::Previous(FOREIGN)]);
    assert_eq!(resume.introduce, Some((FOREIGN, Sequence(9_000))));
    // The same start again, after a crash before the first commit.
    let again = Identity { previous: Some(FOREIGN), clean: false, ..identity() };
    let resume = resumes(check(&again, Some(&ledger(FOREIGN, 9_000)), 0, 10));
    assert!(resume.in_doubt && resume.changes.is_empty() && resume.introduce.is_some());
}

#[test]
fn a_lost_ledger_continues_if_clean_and_is_in_doubt_if_not() {
    let resume = resumes(check(&identity(), None, 40, 500));
    assert_eq!((resume.after, resume.in_doubt, resume.alarm), (Sequence(40), false, None));
    let unclean = Identity { clean: false, ..identity() };
    let resume = resumes(check(&unclean, None, 40, 500));
    assert!(resume.in_doubt && resume.all_partitions);
    assert!(resume.alarm.unwrap().starts_with("ledger_lost"));
}

#[test]
fn a_foreign_nonce_is_a_conflict_before_it_is_a_fork() {
    let mut foreign = ledger(OURS, 9_000);
    foreign.nonce = Nonce([77; 8]);
    holds(check(&identity(), Some(&foreign), 40, 500), "identity_conflict");
    // `state` was lost: the segment stands in for the nonce.
    let bare = Identity { session_nonces: Default::default(), ..identity() };
    foreign.upto = Sequence(90);
    foreign.segment = SEGMENT;
    assert_eq!(resumes(check(&bare, Some(&foreign), 40, 500)).after, Sequence(90));
    foreign.segment = Nonce([99; 8]);
    holds(check(&bare, Some(&foreign), 40, 500), "identity_conflict");
}

#[test]
fn fork_and_behind_hold() {
    holds(check(&identity(), Some(&ledger(OURS, 501)), 40, 500), "fork");
    holds(check(&identity(), Some(&ledger(OURS, 39)), 40, 500), "ledger_behind");
}

#[test]
fn a_foreign_incarnation_after_we_began_is_a_conflict() {
    holds(check(&identity(), Some(&ledger(FOREIGN, 10)), 40, 500), "identity_conflict");
}

#[test]
fn a_renewed_incarnation_goes_on_and_a_restored_cluster_is_behind() {
    let identity = Identity { previous: Some(OLD), ..identity() };
    assert_eq!(resumes(check(&identity, Some(&ledger(OLD, 40)), 40, 500)).after, Sequence(40));
    holds(check(&identity, Some(&ledger(OLD, 30)), 40, 500), "ledger_behind");
}

#[test]
fn another_cluster_holds_unless_told_otherwise() {
    let at = |setting, ledger: Option<&LedgerRecord>| check_on(&identity(), ledger, 40, 500, "other", setting);
    holds(at(OnClusterChange::Hold, Some(&ledger(OURS, 90))), "cluster_changed");
    let resume = resumes(at(OnClusterChange::Continue, None));
    assert_eq!(resume.after, Sequence(40));
    assert_eq!(resume.changes, [IdentityChange::Cluster("other".to_owned())]);
    assert_eq!(resumes(at(OnClusterChange::Continue, Some(&ledger(OURS, 20)))).after, Sequence(40));
    assert_eq!(resumes(at(OnClusterChange::Resend, Some(&ledger(OURS, 20)))).after, Sequence(20));
}
