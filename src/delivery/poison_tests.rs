use super::*;
use proptest::prelude::*;

const INC: Incarnation = Incarnation([1; 16]);

/// Drives a drain of `total` records whose culprits are known, returns what was condemned and how many transactions
/// it took.
fn drive(total: u64, batch: usize, culprits: &[u64], dead_letters_pass: bool) -> (Vec<(u64, Treatment)>, usize) {
    let (mut bisect, mut upto, mut ended, mut transactions) = (Bisect::default(), 0, vec![], 0);
    while upto < total {
        transactions += 1;
        assert!(transactions < 1_000, "no progress at {upto}");
        let records = bisect.records_max().unwrap_or(batch).min(batch).min((total - upto) as usize);
        let span = Span { incarnation: INC, first: Sequence(upto + 1), last: Sequence(upto + records as u64), records };
        let treatment = |n: u64| bisect.condemned().iter().find(|c| c.sequence.0 == n).map(|c| c.treatment);
        let refused = (span.first.0..=span.last.0).any(|n| {
            culprits.contains(&n)
                && match treatment(n) {
                    None => true,
                    Some(Treatment::LocalOnly) => false,
                    Some(_) => !dead_letters_pass,
                }
        });
        if refused {
            bisect.refused(span, "INVALID_RECORD", "no");
        } else {
            ended.extend((span.first.0..=span.last.0).filter_map(|n| treatment(n).map(|t| (n, t))));
            upto = span.last.0;
            bisect.delivered(span.last);
        }
    }
    assert!(bisect.condemned().is_empty() && bisect.records_max().is_none());
    (ended, transactions)
}

#[test]
fn one_culprit_among_many_is_found_in_few_transactions() {
    let (ended, transactions) = drive(1024, 1024, &[700], true);
    assert_eq!(ended, [(700, Treatment::DeadLetter)]);
    assert!(transactions < 40, "{transactions}");
    let (ended, transactions) = drive(5000, 5000, &[1, 2500], true);
    assert_eq!(ended.len(), 2);
    assert!(transactions < 80, "{transactions}: the rest does not go one by one");
}

#[test]
fn a_dead_letter_that_is_refused_too_stays_on_the_gateway() {
    assert_eq!(drive(10, 4, &[3], false).0, [(3, Treatment::LocalOnly)]);
}

#[test]
fn one_refusal_alone_is_no_proof() {
    let mut bisect = Bisect::default();
    let span = Span { incarnation: INC, first: Sequence(5), last: Sequence(5), records: 1 };
    assert_eq!(bisect.refused(span, "X", ""), None);
    bisect.delivered(Sequence(5));
    assert_eq!(bisect.refused(span, "X", ""), None, "a delivery in between clears the suspicion");
    assert_eq!(bisect.refused(span, "X", ""), Some(Sequence(5)));
}

#[test]
fn refused_beforehand() {
    assert_eq!(refuse_beforehand(Flags::default(), true, 10, 10), None);
    assert_eq!(refuse_beforehand(Flags::default(), true, 11, 10).unwrap().code, "size");
    assert_eq!(refuse_beforehand(Flags::DEAD, true, 1, 10).unwrap().code, "size");
    assert_eq!(refuse_beforehand(Flags::default(), false, 1, 10).unwrap().code, "topic");
}

proptest! {
    #[test]
    fn exactly_the_culprits_are_condemned(
        total in 1u64..200, batch in 1usize..80, culprits in prop::collection::btree_set(1u64..200, 0..6),
    ) {
        let culprits: Vec<u64> = culprits.into_iter().filter(|n| *n <= total).collect();
        let (ended, _) = drive(total, batch, &culprits, true);
        prop_assert_eq!(ended.iter().map(|(n, _)| *n).collect::<Vec<_>>(), culprits);
    }
}
