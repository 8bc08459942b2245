use super::follower::{Answer, Change};
use super::*;
use proptest::prelude::*;

#[test]
fn targets_of_different_kinds_never_share_a_tag() {
    let tagger = Tagger::new("ic", None);
    let key = *b"abcdefghijklmnopqrstuvwxyz012345";
    let text = std::str::from_utf8(&key).unwrap();
    let targets = [
        Target::All,
        Target::Namespace,
        Target::Model("ab"),
        Target::Model("a"),
        Target::ModelVersion("ab", "c"),
        Target::ModelVersion("a", "bc"),
        Target::ModelVersion("abc", ""),
        Target::Key(&key),
        Target::Tag("all"),
        Target::Tag("ab"),
        Target::Tag(text),
    ];
    let mut tags: Vec<u64> = targets.iter().map(|&target| tagger.tag("n", target)).collect();
    tags.push(tagger.tag("m", Target::Tag("ab")));
    tags.push(Tagger::new("ic", Some(&[1; 32])).tag("n", Target::Tag("ab")));
    tags.push(Tagger::new("other", None).tag("n", Target::Tag("ab")));
    let count = tags.len();
    tags.sort_unstable();
    tags.dedup();
    assert_eq!(tags.len(), count);
}

#[test]
fn a_purge_during_a_computation_wins_over_its_result() {
    let fences = Fences::new(100);
    let stamp = fences.applied();
    fences.purge(&[5], false);
    assert_eq!(fences.judge(stamp, [5]), Judgement::Hidden);
    assert_eq!(fences.judge(stamp, [6]), Judgement::Valid);
    assert_eq!(fences.judge(fences.applied(), [5]), Judgement::Valid);
}

#[test]
fn a_soft_purge_makes_stale_and_a_hard_one_after_it_hides() {
    let fences = Fences::new(100);
    let stamp = fences.applied();
    fences.purge(&[5], true);
    assert_eq!(fences.judge(stamp, [4, 5]), Judgement::Soft);
    fences.purge(&[5], false);
    assert_eq!(fences.judge(stamp, [4, 5]), Judgement::Hidden);
    fences.purge(&[5], true);
    assert_eq!(fences.judge(stamp, [4, 5]), Judgement::Hidden, "a later soft purge does not lift the hard one");
}

#[test]
fn another_epoch_is_hidden() {
    let fences = Fences::new(100);
    let before = fences.applied();
    fences.begin_epoch();
    assert_eq!(fences.judge(before, [1]), Judgement::Hidden);
    assert_eq!(fences.judge(Fences::new(100).applied(), [1]), Judgement::Hidden);
    assert_eq!(fences.judge(Stamp(0), [1]), Judgement::Hidden);
    assert_eq!(fences.judge(fences.applied(), [1]), Judgement::Valid);
}

#[test]
fn memory_stays_bounded_in_a_storm_of_tags() {
    let fences = Fences::new(1_000);
    for tag in 1..100_000u64 {
        fences.purge(&[tag.wrapping_mul(0x9e37_79b9_7f4a_7c15)], false);
    }
    let (used, horizon) = fences.extent();
    assert!(used <= 8_192, "{used}");
    assert!(horizon >= 99_999 - 1_001, "{horizon}");
    assert!(fences.log.lock().order.len() <= 1_000);
}

const E: EpochId = [1; 16];
const F: EpochId = [2; 16];

fn hard(tag: u64, lsn: u64) -> Change {
    Change { tag, lsn, soft: false }
}

fn whole(epoch: EpochId, upto: u64, changes: &[Change]) -> Answer<'_> {
    Answer { epoch, upto, whole: true, horizon: 0, changes }
}

#[test]
fn while_no_epoch_is_known_nothing_is_valid() {
    let fences = Fences::following(100);
    assert!(fences.applied().is_unknown());
    assert!(!fences.is_current(fences.applied(), fences.applied()));
    assert_eq!(fences.judge(fences.applied(), [1]), Judgement::Hidden);
    assert_eq!(fences.proof(), 0);
    assert_eq!(fences.position(fences.applied()), None);
}

#[test]
fn an_answer_brings_epoch_fences_and_proof() {
    let fences = Fences::following(100);
    let question = fences.ask(77);
    assert_eq!((question.epoch, question.applied), (None, 0));
    assert!(fences.apply(&question, &whole(E, 3, &[hard(5, 2), Change { soft: true, ..hard(6, 3) }])));
    assert_eq!(fences.proof(), 77);
    let now = fences.applied();
    assert_eq!(fences.position(now), Some((E, 3)));
    let at = |lsn| fences.stamp_at(&E, lsn).unwrap();
    assert_eq!(fences.judge(at(1), [5]), Judgement::Hidden);
    assert_eq!(fences.judge(at(2), [5]), Judgement::Valid);
    assert_eq!(fences.judge(at(2), [6]), Judgement::Soft);
    assert_eq!(fences.stamp_at(&F, 1), None);
}

#[test]
fn a_cut_answer_is_no_proof() {
    let fences = Fences::following(100);
    fences.apply(&fences.ask(10), &whole(E, 1, &[]));
    let changes = [hard(5, 2)];
    let cut = Answer { whole: false, ..whole(E, 2, &changes) };
    assert!(fences.apply(&fences.ask(20), &cut));
    assert_eq!((fences.applied().lsn(), fences.proof()), (2, 10));
    assert!(fences.apply(&fences.ask(30), &Answer { whole: false, ..whole(F, 2, &[hard(5, 2)]) }));
    assert_eq!(fences.proof(), 0, "of the new epoch nothing is proven yet");
}

#[test]
fn answers_merge_by_maximum_in_any_order() {
    let fences = Fences::following(100);
    fences.apply(&fences.ask(1), &whole(E, 0, &[]));
    let (early, late) = (fences.ask(2), fences.ask(3));
    fences.apply(&late, &Answer { horizon: 1, ..whole(E, 4, &[hard(5, 4), hard(6, 3)]) });
    fences.apply(&early, &whole(E, 3, &[hard(5, 2), hard(6, 3)]));
    assert_eq!((fences.applied().lsn(), fences.proof()), (4, 3));
    assert_eq!(fences.judge(fences.stamp_at(&E, 3).unwrap(), [5]), Judgement::Hidden);
    assert_eq!(fences.judge(fences.stamp_at(&E, 0).unwrap(), [9]), Judgement::Hidden, "below the horizon");
    assert_eq!(fences.judge(fences.stamp_at(&E, 3).unwrap(), [6]), Judgement::Valid);
}

#[test]
fn an_answer_asked_for_before_the_epoch_changed_is_discarded() {
    let fences = Fences::following(100);
    fences.apply(&fences.ask(1), &whole(E, 7, &[]));
    let old = fences.ask(2);
    assert!(fences.apply(&fences.ask(3), &whole(F, 1, &[hard(5, 1)])));
    assert!(!fences.apply(&old, &whole(E, 7, &[])), "the old epoch does not come back");
    assert_eq!(fences.position(fences.applied()), Some((F, 1)));
    assert!(fences.apply(&old, &whole(F, 1, &[hard(5, 1)])), "one of the new epoch is as good as any");
}

#[test]
fn applied_never_runs_over_a_gap() {
    let fences = Fences::following(100);
    fences.apply(&fences.ask(1), &whole(E, 5, &[]));
    let since_five = fences.ask(2);
    fences.apply(&fences.ask(3), &whole(F, 0, &[]));
    fences.apply(&fences.ask(4), &Answer { whole: false, ..whole(E, 2, &[]) });
    assert!(!fences.apply(&since_five, &whole(E, 9, &[hard(5, 9)])), "what lies between 2 and 5 is in no answer");
    assert_eq!(fences.position(fences.applied()), Some((E, 2)));
}

#[test]
fn a_change_of_epoch_hides_every_stamp_of_before() {
    let fences = Fences::following(100);
    fences.apply(&fences.ask(1), &whole(E, 7, &[]));
    let before = fences.applied();
    fences.apply(&fences.ask(2), &whole(F, 9, &[]));
    assert_eq!(fences.judge(before, [1]), Judgement::Hidden);
    assert_eq!(fences.position(before), None);
    fences.apply(&fences.ask(3), &whole(E, 7, &[]));
    assert_eq!(fences.judge(before, [1]), Judgement::Hidden, "nor does its return bring them back");
}

#[test]
fn a_pending_purge_hides_whatever_the_stamp_until_it_is_acknowledged() {
    let fences = Fences::following(100);
    fences.apply(&fences.ask(1), &whole(E, 3, &[]));
    let now = fences.applied();
    let unaware = fences.ask(2);
    fences.hide(&[5], false);
    fences.hide(&[6], true);
    assert!(!fences.is_current(now, now));
    assert_eq!([5, 6, 7].map(|tag| fences.judge(now, [tag])), [Judgement::Hidden, Judgement::Soft, Judgement::Valid]);
    fences.apply(&unaware, &whole(E, 3, &[]));
    assert_eq!(fences.judge(now, [5]), Judgement::Hidden, "that answer is to a question without the purge");
    let question = fences.ask(3);
    assert_eq!(question.pending, [(5, false), (6, true)]);
    fences.hide(&[8], false);
    fences.apply(&question, &whole(E, 5, &[hard(5, 4), Change { soft: true, ..hard(6, 5) }]));
    assert_eq!(fences.pending(), 1);
    assert_eq!(fences.judge(fences.applied(), [5, 6]), Judgement::Valid, "computed after it");
    assert_eq!(fences.judge(now, [5]), Judgement::Hidden);
    assert_eq!(fences.judge(fences.applied(), [8]), Judgement::Hidden);
}

#[test]
fn pending_purges_outlive_epochs_and_full_maps() {
    let fences = Fences::following(10_000);
    fences.apply(&fences.ask(1), &whole(E, 0, &[]));
    fences.hide(&[5], false);
    let many: Vec<Change> = (1..5_000u64).map(|lsn| hard(lsn.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, lsn)).collect();
    fences.apply(&fences.ask(2).without_purges(), &whole(E, 4_999, &many));
    assert_eq!(fences.judge(fences.applied(), [5]), Judgement::Hidden);
    fences.apply(&fences.ask(9).without_purges(), &whole(F, 1, &[]));
    assert_eq!(fences.position(fences.applied()), Some((F, 1)));
    assert_eq!(fences.judge(fences.applied(), [5]), Judgement::Hidden);
}

#[test]
fn a_follower_in_the_child_of_a_fork_knows_nothing() {
    let fences = Fences::following(100);
    fences.apply(&fences.ask(1), &whole(E, 3, &[]));
    let (stamp, parents) = (fences.applied(), fences.ask(2));
    fences.begin_epoch();
    assert_eq!(fences.judge(stamp, [1]), Judgement::Hidden);
    assert_eq!(fences.proof(), 0);
    assert!(!fences.apply(&parents, &whole(E, 3, &[])), "an answer to the parent");
    assert!(fences.apply(&fences.ask(3), &whole(E, 3, &[])));
    assert_eq!(fences.judge(stamp, [1]), Judgement::Hidden, "what was being computed when the process forked");
}

proptest! {
    /// The reference keeps every purge for ever; a judgement may be harder than the reference's (the horizon), never softer.
    #[test]
    fn nothing_purged_is_ever_judged_valid(
        steps in proptest::collection::vec((0u8..4, proptest::collection::vec(1u64..40, 1..4), any::<bool>()), 1..300), most in 1usize..50
    ) {
        let fences = Fences::new(most);
        let mut purges: Vec<(Vec<u64>, bool)> = Vec::new();
        let mut stamps = vec![(fences.applied(), 0)];
        for (step, tags, soft) in steps {
            if step == 0 {
                fences.purge(&tags, soft);
                purges.push((tags, soft));
            } else if step == 1 {
                stamps.push((fences.applied(), purges.len()));
            } else {
                for &(stamp, at) in &stamps {
                    let hit = |soft| purges[at..].iter().any(|(purged, s)| *s == soft && purged.iter().any(|tag| tags.contains(tag)));
                    let expected = if hit(false) { Judgement::Hidden } else if hit(true) { Judgement::Soft } else { Judgement::Valid };
                    let found = fences.judge(stamp, tags.iter().copied());
                    prop_assert!(found == expected || found == Judgement::Hidden && stamp.lsn() < fences.extent().1, "{found:?} {expected:?}");
                }
            }
        }
    }
}
