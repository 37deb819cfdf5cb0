//! The suite tried out: the reference store passes every case, and each of a list of small flaws fails the case named for it.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{CASES, Case};
use crate::clock::Timestamp;
use crate::store::*;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};
use crate::testing::SimClock;

/// One small way of being wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    // Claims, renewals, releases.
    EverythingIsClean,
    EndedLifeHadReleased,
    RepeatedClaimRaisesTheEpoch,
    GivenUpKeepsItsEpoch,
    EverythingIsUnknown,
    StartTakesNothing,
    RunningTakesLikeAStart,
    ConfigurationIsForgotten,
    HolderIsNotNamed,
    GrantsAreSorted,
    LeaseNeverRunsOut,
    UnknownMayRenew,
    RenewDoesNotExtend,
    ShardsSortAsText,
    InboxOfOthersIsNamed,
    ReleaseDoesNothing,
    ReleaseGivesUpEverything,
    AnyoneMayRelease,
    ReleaseIgnoresTheEpoch,
    // Members.
    EachClaimNamesTheStore,
    OverlapIsThatOfTheClaim,
    JoinsAreNotSeen,
    MembersAreAsTheyCame,
    NumberNeverChanges,
    NumberAlwaysChanges,
    RenewalsSayNothing,
    MembersNeverEnd,
    EarlierLivesStay,
    LeavingNeverLeaves,
    LeavingIsTakenBack,
    WhoeverOwnsNothingLeaves,
    CordonIsForgotten,
    CordonGoesByName,
    CordonIgnoresChanges,
    SameCordonIsNoChange,
    PlacementIsNotCompared,
    OnlyAHundredMembers,
    HintsSpeakOfInboxesOnly,
    // Commits.
    AcknowledgedButNotWritten,
    EpochIsNotChecked,
    OwnerIsNotChecked,
    FenceTakesSomeSteps,
    RepeatsAreApplied,
    LanesShareANumber,
    SequenceIsTheOther,
    StaleIsAnsweredAsDone,
    OneFencedBatchStopsAll,
    FencedBatchWritesItsFirstOperation,
    LargeBatchIsCutOff,
    SequenceIsFloatingPoint,
    // Rows.
    SmallerRevisionReplaces,
    RemovalIgnoresTheRevision,
    MovedAlarmStaysAtItsOldTime,
    TimesAreSeconds,
    TimesStartIn1970,
    AttemptsAreSigned,
    MetaIsReformatted,
    EmptyErrorIsNone,
    PutMessageInserts,
    RemovalIgnoresTheArrival,
    DeadLettersOfBothKindsAreOne,
    DuplicateIsNotTold,
    HeadersAreAMap,
    BodiesAreText,
    NeverHints,
    OnlyTheLastListenerHears,
    // Reading.
    PageIncludesItsKey,
    PageIgnoresItsBytes,
    EndIsNotTold,
    EmptyPageIsNotTheLast,
    PageIsOneShort,
    AlarmsComeById,
    OnlyTheFirstPageIsAnswered,
    RangeIncludesItsEnd,
    RangeExcludesItsStart,
    LimitIsIgnored,
    ReadIgnoresItsBytes,
    EndOfARangeIsNotTold,
    PrefixIsEnough,
    // IDs.
    IdsAreTrimmed,
    IdsFoldCase,
    IdsAreCut,
    KeysAreJoinedByColons,
    KeysSortAsUtf16,
}

/// Each flaw, and a case that must fail on it.
const CAUGHT: &[(Flaw, &[&str])] = {
    use Flaw::*;
    &[
        (EverythingIsClean, &["an_expired_lease_can_be_taken_and_is_not_clean", "clean_speaks_of_the_last_owner_only"]),
        (EndedLifeHadReleased, &["a_shard_of_an_ended_life_is_not_clean_whenever_it_is_claimed"]),
        (RepeatedClaimRaisesTheEpoch, &["repeating_a_claim_keeps_epoch_and_clean_mark"]),
        (GivenUpKeepsItsEpoch, &["a_shard_given_up_and_claimed_again_has_a_greater_epoch"]),
        (EverythingIsUnknown, &["renew_lists_owned_shards_ascending"]),
        (StartTakesNothing, &["a_start_takes_the_shards_of_its_own_host_name_at_once"]),
        (RunningTakesLikeAStart, &["a_running_claim_takes_nothing_from_a_living_lease_of_its_own_host_name"]),
        (
            ConfigurationIsForgotten,
            &["another_shard_count_is_refused_with_both_numbers", "another_hash_version_is_refused_with_both_numbers"],
        ),
        (HolderIsNotNamed, &["a_held_shard_names_its_holder_and_the_time_left"]),
        (GrantsAreSorted, &["grants_come_in_the_order_asked_for"]),
        (LeaseNeverRunsOut, &["an_expired_lease_can_be_taken_and_is_not_clean"]),
        (
            UnknownMayRenew,
            &[
                "an_unknown_incarnation_cannot_renew",
                "a_replaced_incarnation_cannot_renew",
                "one_that_has_left_comes_back_by_no_claim_or_renewal",
            ],
        ),
        (RenewDoesNotExtend, &["renew_extends_a_lease_that_ran_out"]),
        (ShardsSortAsText, &["renew_lists_owned_shards_ascending"]),
        (InboxOfOthersIsNamed, &["renew_names_owned_shards_with_inbox_rows"]),
        (ReleaseIgnoresTheEpoch, &["a_release_that_comes_late_undoes_no_later_claim"]),
        (LeavingIsTakenBack, &["whoever_leaves_is_leaving_to_its_end"]),
        (CordonIgnoresChanges, &["a_cordon_that_comes_late_undoes_no_later_one"]),
        (SameCordonIsNoChange, &["a_cordon_that_comes_late_undoes_no_later_one"]),
        (CordonGoesByName, &["a_cordon_is_seen_by_all_until_it_is_taken_away"]),
        (ReleaseDoesNothing, &["a_released_shard_is_free_at_once_and_clean"]),
        (ReleaseGivesUpEverything, &["a_release_gives_up_only_the_shards_named"]),
        (AnyoneMayRelease, &["a_release_by_somebody_else_changes_nothing", "releasing_twice_is_safe"]),
        (OverlapIsThatOfTheClaim, &["each_claim_is_told_the_same_number_of_overlapping_writes"]),
        (EachClaimNamesTheStore, &["every_claim_is_told_the_same_name_of_the_store"]),
        (JoinsAreNotSeen, &["a_join_is_seen_by_the_next_of_the_others"]),
        (MembersAreAsTheyCame, &["a_join_is_seen_by_the_next_of_the_others"]),
        (NumberNeverChanges, &["a_join_is_seen_by_the_next_of_the_others", "a_member_is_as_it_has_said"]),
        (NumberAlwaysChanges, &["the_number_of_members_changes_with_them_and_only_then"]),
        (
            RenewalsSayNothing,
            &["a_member_is_as_it_has_said", "one_that_leaves_is_told_so_and_gone_when_it_owns_nothing"],
        ),
        (
            MembersNeverEnd,
            &[
                "a_member_ends_with_its_lease_by_the_clock_of_the_store",
                "whoever_owns_nothing_sees_the_members_and_changes_none",
            ],
        ),
        (EarlierLivesStay, &["a_start_takes_the_place_of_the_member_of_its_name"]),
        (LeavingNeverLeaves, &["one_that_leaves_is_told_so_and_gone_when_it_owns_nothing"]),
        (WhoeverOwnsNothingLeaves, &["one_that_owns_nothing_and_does_not_leave_stays"]),
        (CordonIsForgotten, &["a_cordon_is_seen_by_all_until_it_is_taken_away"]),
        (PlacementIsNotCompared, &["hosts_of_the_other_placement_are_refused_while_one_holds_a_lease"]),
        (OnlyAHundredMembers, &["two_hundred_members_are_all_seen"]),
        (HintsSpeakOfInboxesOnly, &["a_hint_follows_a_join_a_release_a_cordon_and_a_leave"]),
        (AcknowledgedButNotWritten, &["a_commit_is_seen_at_once"]),
        (EpochIsNotChecked, &["an_epoch_of_the_past_is_fenced", "an_epoch_of_the_future_is_fenced"]),
        (
            OwnerIsNotChecked,
            &[
                "another_incarnation_is_fenced_under_the_right_epoch",
                "a_late_write_after_a_newer_claim_changes_nothing",
                "a_repeat_after_the_shard_was_lost_is_fenced",
                "concurrent_owners_never_interleave",
            ],
        ),
        (FenceTakesSomeSteps, &["concurrent_owners_never_interleave", "a_fence_holds_while_writes_are_under_way"]),
        (
            RepeatsAreApplied,
            &[
                "a_repeat_with_other_contents_changes_nothing",
                "a_repeated_write_is_done_without_being_applied",
                "a_repeat_of_a_part_of_a_write_is_done_without_being_applied",
            ],
        ),
        (LanesShareANumber, &["lanes_count_separately"]),
        (SequenceIsTheOther, &["a_number_counts_for_its_lane_or_for_its_shard_as_the_store_says"]),
        (StaleIsAnsweredAsDone, &["an_older_write_is_stale_and_changes_nothing"]),
        (OneFencedBatchStopsAll, &["a_fenced_batch_leaves_nothing_and_the_others_land"]),
        (FencedBatchWritesItsFirstOperation, &["a_late_write_after_a_newer_claim_changes_nothing"]),
        (LargeBatchIsCutOff, &["a_thousand_operations_land_in_one_batch"]),
        (SequenceIsFloatingPoint, &["sequences_may_skip_and_are_compared_as_whole_numbers"]),
        (SmallerRevisionReplaces, &["a_smaller_revision_leaves_the_alarm_as_it_is"]),
        (RemovalIgnoresTheRevision, &["removing_by_a_smaller_revision_leaves_the_alarm"]),
        (MovedAlarmStaysAtItsOldTime, &["a_moved_alarm_leaves_no_row_at_its_old_time"]),
        (TimesAreSeconds, &["dates_from_year_1_to_9999_keep_their_order"]),
        (TimesStartIn1970, &["dates_from_year_1_to_9999_keep_their_order"]),
        (AttemptsAreSigned, &["an_alarm_comes_back_as_it_was_put"]),
        (MetaIsReformatted, &["an_alarm_comes_back_as_it_was_put", "large_meta_is_kept_byte_by_byte"]),
        (EmptyErrorIsNone, &["an_alarm_comes_back_as_it_was_put"]),
        (PutMessageInserts, &["put_message_on_a_missing_row_does_nothing"]),
        (RemovalIgnoresTheArrival, &["removing_a_message_of_another_arrival_does_nothing"]),
        (DeadLettersOfBothKindsAreOne, &["a_dead_alarm_and_a_dead_message_may_share_an_id"]),
        (
            DuplicateIsNotTold,
            &["a_second_post_of_an_id_is_a_duplicate_and_the_first_stays", "a_duplicate_within_one_call_is_told"],
        ),
        (HeadersAreAMap, &["headers_keep_order_repetitions_and_bytes"]),
        (BodiesAreText, &["bodies_are_any_bytes"]),
        (NeverHints, &["a_hint_follows_a_post", "hints_come_for_shards_of_nobody"]),
        (OnlyTheLastListenerHears, &["two_listeners_both_hear_of_a_post"]),
        (PageIncludesItsKey, &["a_page_starts_strictly_after_its_key"]),
        (PageIgnoresItsBytes, &["a_page_has_no_more_bytes_than_it_may_and_one_row_at_least"]),
        (EndIsNotTold, &["fewer_rows_than_the_limit_means_no_more"]),
        (EmptyPageIsNotTheLast, &["a_page_without_rows_is_the_last"]),
        (PageIsOneShort, &["fewer_rows_than_the_limit_means_no_more"]),
        (AlarmsComeById, &["alarms_come_in_order_of_time_interface_instance_and_id"]),
        (OnlyTheFirstPageIsAnswered, &["many_pages_are_answered_in_the_order_asked_for"]),
        (RangeIncludesItsEnd, &["a_range_has_its_start_and_not_its_end", "an_instances_alarms_are_read_by_id"]),
        (RangeExcludesItsStart, &["a_range_has_its_start_and_not_its_end", "an_instances_alarms_are_read_by_id"]),
        (LimitIsIgnored, &["a_read_is_limited_and_starts_at_the_smallest_key"]),
        (ReadIgnoresItsBytes, &["a_read_has_no_more_bytes_than_it_may_and_one_row_at_least"]),
        (EndOfARangeIsNotTold, &["the_end_of_a_range_is_told"]),
        (
            PrefixIsEnough,
            &["an_id_that_begins_another_is_not_read_with_it", "a_read_sees_one_instance_of_one_interface"],
        ),
        (IdsAreTrimmed, &["hostile_alarm_ids_keep_apart_and_in_byte_order", "hostile_message_ids_keep_apart"]),
        (
            IdsFoldCase,
            &["hostile_instance_ids_keep_apart_and_in_byte_order", "hostile_storage_keys_keep_apart_and_in_byte_order"],
        ),
        (IdsAreCut, &["ids_of_512_bytes_and_keys_of_1024_bytes_fit"]),
        (KeysAreJoinedByColons, &["names_that_are_equal_when_joined_keep_apart"]),
        (KeysSortAsUtf16, &["hostile_storage_keys_keep_apart_and_in_byte_order"]),
    ]
};

/// A [`MemoryStore`] with one flaw.
#[derive(Debug)]
struct Flawed {
    inner: MemoryStore,
    flaw: Flaw,
    /// Numbers for writes that have none of their own.
    counter: AtomicU64,
    /// Every alarm that was ever put.
    put: Mutex<Vec<AlarmRow>>,
    /// Keeps streams open that never say anything.
    silent: Mutex<Vec<HintSender>>,
    /// The life of each host that was started last.
    lives: Mutex<BTreeMap<Arc<str>, Incarnation>>,
    /// Every member that was ever seen.
    members: Mutex<BTreeMap<Incarnation, Member>>,
}

impl Flawed {
    /// Releases what an earlier life of the host owns and this one does not ask for.
    async fn release_the_rest(&self, claim: &Claim) {
        let earlier = self.lives.lock().insert(claim.host.clone(), claim.incarnation);
        if let Some(earlier) = earlier.filter(|earlier| *earlier != claim.incarnation) {
            let shards = self.inner.dump().shards.into_keys();
            let rest = shards.filter(|shard| !claim.shards.contains(shard));
            let rest: Vec<_> = rest.map(|shard| (shard, None)).collect();
            self.inner.release(earlier, &rest).await.unwrap();
        }
    }

    /// The fault in what is said of members.
    fn flawed_members(&self, members: &mut Members) {
        let mut known = self.members.lock();
        match self.flaw {
            Flaw::MembersAreAsTheyCame => members.list.sort_by_key(|member| member.incarnation.0),
            Flaw::NumberNeverChanges => members.version = 1,
            Flaw::NumberAlwaysChanges => members.version += self.number(),
            Flaw::OnlyAHundredMembers => members.list.truncate(100),
            Flaw::CordonIsForgotten => members.list.iter_mut().for_each(|member| member.state = MemberState::Up),
            Flaw::CordonGoesByName => {
                known.extend(members.list.iter().map(|member| (member.incarnation, member.clone())));
            }
            Flaw::MembersNeverEnd | Flaw::LeavingNeverLeaves | Flaw::EarlierLivesStay => {
                known.extend(members.list.iter().map(|member| (member.incarnation, member.clone())));
                members.list = known.values().cloned().collect();
                members.list.sort_by(|a, b| a.name.cmp(&b.name));
            }
            Flaw::WhoeverOwnsNothingLeaves => {
                let owners = self.inner.dump().shards.into_values().filter_map(|shard| shard.owner);
                let owners: Vec<_> = owners.collect();
                members.list.retain(|member| owners.contains(&member.incarnation));
            }
            _ => {}
        }
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn number(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::SeqCst)
    }

    fn owner_of(&self, shard: ShardId) -> Option<(Incarnation, Epoch)> {
        let dump = self.inner.dump();
        let shard = dump.shards.get(&shard)?;
        Some((shard.owner?, shard.epoch))
    }

    /// Writes past all checks, in the name of whoever owns the shard.
    async fn force(&self, shard: ShardId, ops: Vec<Op>) {
        if let Some((incarnation, epoch)) = self.owner_of(shard) {
            let write = Write {
                incarnation,
                lane: Lane(60_000),
                seq: self.number(),
                batches: vec![Batch { shard, epoch, ops: ops.into() }],
            };
            self.inner.commit(&write).await.unwrap();
        }
    }

    fn text(&self, id: &Arc<str>) -> Arc<str> {
        match self.flaw {
            Flaw::IdsAreTrimmed => id.trim().into(),
            Flaw::IdsFoldCase => id.to_lowercase().into(),
            Flaw::IdsAreCut => id.chars().take(400).collect::<String>().into(),
            _ => id.clone(),
        }
    }

    fn name(&self, name: &InstanceName) -> InstanceName {
        InstanceName { interface: name.interface.clone(), instance: self.text(&name.instance) }
    }

    /// The place of a storage value.
    fn place(&self, name: &InstanceName, key: &str) -> (InstanceName, Arc<str>) {
        match self.flaw {
            Flaw::KeysAreJoinedByColons => {
                let all = InstanceName { interface: "all".into(), instance: "all".into() };
                (all, format!("{}:{}:{key}", name.interface, name.instance).into())
            }
            _ => (self.name(name), self.text(&key.into())),
        }
    }

    fn alarm(&self, row: &AlarmRow) -> AlarmRow {
        let mut row = AlarmRow { name: self.name(&row.name), id: self.text(&row.id), ..row.clone() };
        let millis = row.due.as_millis();
        match self.flaw {
            Flaw::TimesAreSeconds => row.due = Timestamp::from_millis(millis - millis.rem_euclid(1_000)),
            Flaw::TimesStartIn1970 => row.due = Timestamp::from_millis(millis.max(0)),
            Flaw::AttemptsAreSigned => row.attempts.failed = row.attempts.failed.min(i32::MAX.unsigned_abs()),
            Flaw::EmptyErrorIsNone => {
                row.attempts.last_error = row.attempts.last_error.filter(|error| !error.is_empty());
            }
            Flaw::MetaIsReformatted => {
                let json = serde_json::from_slice::<serde_json::Value>(&row.meta);
                row.meta = json.map_or(row.meta, |json| json.to_string().into());
            }
            _ => {}
        }
        row
    }

    async fn op(&self, shard: ShardId, op: &Op) -> Vec<Op> {
        match op {
            Op::PutAlarm(row) => {
                let row = self.alarm(row);
                if self.is(Flaw::SmallerRevisionReplaces) {
                    let revision = Revision { epoch: Epoch(u64::MAX), counter: 0 };
                    self.force(shard, vec![Op::RemoveAlarm { name: row.name.clone(), id: row.id.clone(), revision }])
                        .await;
                }
                self.put.lock().push(row.clone());
                vec![Op::PutAlarm(row)]
            }
            Op::RemoveAlarm { name, id, revision } => {
                let anything = Revision { epoch: Epoch(u64::MAX), counter: 0 };
                let revision = if self.is(Flaw::RemovalIgnoresTheRevision) { anything } else { *revision };
                vec![Op::RemoveAlarm { name: self.name(name), id: self.text(id), revision }]
            }
            Op::PutMessage(row) if self.is(Flaw::PutMessageInserts) => {
                let (name, id, headers, body) =
                    (row.name.clone(), row.id.clone(), row.headers.clone(), row.body.clone());
                self.inner.post(&[NewMessage { shard, name, id, headers, body }]).await.unwrap();
                vec![op.clone()]
            }
            Op::RemoveMessage(key) if self.is(Flaw::RemovalIgnoresTheArrival) => {
                let rows = self.inner.dump();
                let same = |row: &&InboxRow| row.name == key.name && row.id == key.id;
                rows.inbox().filter(same).map(|row| Op::RemoveMessage(row.key())).collect()
            }
            Op::RemoveDead(key) if self.is(Flaw::DeadLettersOfBothKindsAreOne) => {
                [true, false].map(|is_message| Op::RemoveDead(DeadKey { is_message, ..key.clone() })).into()
            }
            Op::Put { name, key, value } => {
                let (name, key) = self.place(name, key);
                vec![Op::Put { name, key, value: value.clone() }]
            }
            Op::Delete { name, key } => {
                let (name, key) = self.place(name, key);
                vec![Op::Delete { name, key }]
            }
            _ => vec![op.clone()],
        }
    }

    /// The fault before a write reaches the store.
    async fn flawed_write(&self, write: &Write) -> Write {
        let mut write = write.clone();
        for batch in &mut write.batches {
            let mut ops = Vec::new();
            for op in batch.ops.iter() {
                ops.extend(self.op(batch.shard, op).await);
            }
            match self.flaw {
                Flaw::EpochIsNotChecked => {
                    batch.epoch = self.owner_of(batch.shard).map_or(batch.epoch, |(_, epoch)| epoch);
                }
                Flaw::AcknowledgedButNotWritten => ops.clear(),
                Flaw::LargeBatchIsCutOff => ops.truncate(512),
                _ => {}
            }
            batch.ops = ops.into();
        }
        match self.flaw {
            Flaw::RepeatsAreApplied => write.seq = self.number(),
            Flaw::LanesShareANumber => write.lane = Lane(0),
            #[allow(clippy::cast_possible_truncation, reason = "this is the flaw")]
            Flaw::SequenceIsFloatingPoint => write.seq = (write.seq as f64) as u64,
            Flaw::OwnerIsNotChecked => {
                let owner = write.batches.first().and_then(|batch| self.owner_of(batch.shard));
                let (incarnation, epoch) = owner.unwrap_or((write.incarnation, Epoch(0)));
                write.incarnation = incarnation;
                write.batches.iter_mut().for_each(|batch| batch.epoch = epoch);
                write.seq = self.number();
            }
            _ => {}
        }
        write
    }
}

#[async_trait]
impl Store for Flawed {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        let mut claim = claim.clone();
        match self.flaw {
            Flaw::StartTakesNothing => claim.kind = ClaimKind::Running,
            Flaw::RunningTakesLikeAStart => claim.kind = ClaimKind::Start,
            Flaw::ConfigurationIsForgotten => (claim.shard_count, claim.hash_version) = (1, 1),
            Flaw::GivenUpKeepsItsEpoch => claim.given_up.clear(),
            Flaw::EndedLifeHadReleased if claim.kind == ClaimKind::Start => self.release_the_rest(&claim).await,
            Flaw::LeaseNeverRunsOut => claim.lease = Duration::MAX,
            Flaw::RepeatedClaimRaisesTheEpoch => {
                let all: Vec<_> = claim.shards.iter().map(|shard| (*shard, None)).collect();
                self.inner.release(claim.incarnation, &all).await?;
            }
            _ => {}
        }
        if self.is(Flaw::PlacementIsNotCompared) {
            claim.presence.placement = Placement::List;
        }
        let mut claimed = self.inner.claim(&claim).await?;
        self.flawed_members(&mut claimed.members);
        match self.flaw {
            Flaw::EverythingIsClean => claimed.granted.iter_mut().for_each(|grant| grant.clean = true),
            Flaw::HolderIsNotNamed => claimed.held.iter_mut().for_each(|held| held.holder = "".into()),
            Flaw::SequenceIsTheOther => claimed.sequence = Sequence::OfShard,
            Flaw::OverlapIsThatOfTheClaim => {
                let writes = u16::try_from(claim.incarnation.0).unwrap_or(u16::MAX);
                claimed.overlap = NonZeroU16::MIN.saturating_add(writes);
            }
            Flaw::EachClaimNamesTheStore => claimed.store = Some(claim.incarnation.0.to_string().into()),
            Flaw::JoinsAreNotSeen => claimed.members.list.retain(|member| member.incarnation == claim.incarnation),
            Flaw::GrantsAreSorted => claimed.granted.sort_by_key(|grant| grant.shard),
            _ => {}
        }
        Ok(claimed)
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        let mut flawed = renewal.clone();
        match self.flaw {
            Flaw::RenewDoesNotExtend => flawed.lease = Duration::ZERO,
            Flaw::RenewalsSayNothing => flawed.presence = Presence::default(),
            _ => {}
        }
        let mut renewed = self.inner.renew(&flawed).await;
        if let Ok(renewed) = &mut renewed {
            self.flawed_members(&mut renewed.members);
            let said = renewed.members.list.iter_mut().find(|member| member.incarnation == renewal.incarnation);
            if let Some(said) = said.filter(|_| self.is(Flaw::LeavingIsTakenBack) && !renewal.presence.is_leaving) {
                said.state = MemberState::Up;
            }
        }
        match self.flaw {
            Flaw::UnknownMayRenew => {
                let (now, members) = (Timestamp::UNIX_EPOCH, Members::default());
                let nothing = Renewed { owned: vec![], unknown: vec![], inbox: vec![], now, members };
                Ok(renewed.unwrap_or(nothing))
            }
            Flaw::EverythingIsUnknown => renewed.map(|renewed| Renewed { unknown: renewed.owned.clone(), ..renewed }),
            Flaw::ShardsSortAsText => renewed.map(|mut renewed| {
                renewed.owned.sort_by_key(ShardId::to_string);
                renewed
            }),
            Flaw::InboxOfOthersIsNamed => {
                let shards = self.inner.dump().shards;
                let inbox = shards.iter().filter(|(_, shard)| !shard.inbox.is_empty()).map(|(id, _)| *id).collect();
                renewed.map(|renewed| Renewed { inbox, ..renewed })
            }
            _ => renewed,
        }
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        match self.flaw {
            Flaw::ReleaseDoesNothing => Ok(()),
            Flaw::ReleaseGivesUpEverything => {
                let all: Vec<_> = self.inner.dump().shards.into_keys().map(|shard| (shard, None)).collect();
                self.inner.release(incarnation, &all).await
            }
            Flaw::AnyoneMayRelease => {
                for (shard, epoch) in given_up {
                    let owner = self.owner_of(*shard).map_or(incarnation, |(owner, _)| owner);
                    self.inner.release(owner, &[(*shard, *epoch)]).await?;
                }
                Ok(())
            }
            Flaw::ReleaseIgnoresTheEpoch => {
                let whatever: Vec<_> = given_up.iter().map(|(shard, _)| (*shard, None)).collect();
                self.inner.release(incarnation, &whatever).await
            }
            _ => self.inner.release(incarnation, given_up).await,
        }
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        let members = self.inner.members().await?;
        match self.flaw {
            Flaw::CordonGoesByName if members.version == seen => {
                let named = self.members.lock().get(&member).map(|member| member.name.clone());
                for other in members.list.iter().filter(|other| Some(&other.name) == named.as_ref()) {
                    let now = self.inner.members().await?.version;
                    self.inner.cordon(other.incarnation, is_cordoned, now).await?;
                }
                Ok(members.list.iter().any(|other| other.incarnation == member))
            }
            Flaw::CordonIgnoresChanges => self.inner.cordon(member, is_cordoned, members.version).await,
            Flaw::SameCordonIsNoChange => {
                let is_so = members.list.iter().find(|other| other.incarnation == member);
                let is_so = is_so.map(|other| other.state == MemberState::Cordoned);
                match is_so == Some(is_cordoned) && members.version == seen {
                    true => Ok(true),
                    false => self.inner.cordon(member, is_cordoned, seen).await,
                }
            }
            _ => self.inner.cordon(member, is_cordoned, seen).await,
        }
    }

    async fn members(&self) -> Result<Members, StoreError> {
        let mut members = self.inner.members().await?;
        self.flawed_members(&mut members);
        Ok(members)
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let flawed = self.flawed_write(write).await;
        let is_owner = |batch: &Batch| self.owner_of(batch.shard) == Some((write.incarnation, batch.epoch));
        match self.flaw {
            Flaw::OneFencedBatchStopsAll if !write.batches.iter().all(is_owner) => {
                let fenced =
                    |batch: &Batch| Err(StoreError::Fenced { shard: batch.shard, held: batch.epoch, newest: Epoch(1) });
                return Ok(write.batches.iter().map(fenced).collect());
            }
            Flaw::FencedBatchWritesItsFirstOperation => {
                for batch in write.batches.iter().filter(|batch| !is_owner(batch)) {
                    self.force(batch.shard, batch.ops.iter().take(1).cloned().collect()).await;
                }
            }
            Flaw::FenceTakesSomeSteps if write.batches.iter().all(is_owner) => {
                // Checked, and only then written: a claim may come in between.
                tokio::task::yield_now().await;
                for batch in flawed.batches {
                    self.force(batch.shard, batch.ops.to_vec()).await;
                }
                return Ok(write.batches.iter().map(|_| Ok(())).collect());
            }
            _ => {}
        }
        match self.inner.commit(&flawed).await {
            Err(StoreError::Stale { .. }) if self.is(Flaw::StaleIsAnsweredAsDone) => {
                Ok(write.batches.iter().map(|_| Ok(())).collect())
            }
            answer => answer,
        }
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        let flawed = |message: &NewMessage| {
            let mut message =
                NewMessage { name: self.name(&message.name), id: self.text(&message.id), ..message.clone() };
            match self.flaw {
                Flaw::HeadersAreAMap => {
                    let headers: BTreeMap<_, _> = message.headers.into_iter().collect();
                    message.headers = headers.into_iter().collect();
                }
                Flaw::BodiesAreText => message.body = String::from_utf8_lossy(&message.body).into_owned().into(),
                _ => {}
            }
            message
        };
        let posted = self.inner.post(&messages.iter().map(flawed).collect::<Vec<_>>()).await?;
        Ok(if self.is(Flaw::DuplicateIsNotTold) { vec![Posted::Inserted; posted.len()] } else { posted })
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        let (sender, hints) = Hints::channel();
        let is_first = {
            let mut silent = self.silent.lock();
            silent.push(sender);
            silent.len() == 1
        };
        match self.flaw {
            Flaw::NeverHints => Ok(hints),
            Flaw::OnlyTheLastListenerHears if is_first => Ok(hints),
            Flaw::HintsSpeakOfInboxesOnly => {
                let mut all = self.inner.watch(incarnation).await?;
                let (sender, some) = Hints::channel();
                tokio::spawn(async move {
                    while let Some(hint) = all.next().await {
                        if hint != Hint::Fleet {
                            sender.send(hint);
                        }
                    }
                });
                Ok(some)
            }
            _ => self.inner.watch(incarnation).await,
        }
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        let mut flawed = pages.to_vec();
        for page in &mut flawed {
            match (self.flaw, &page.after) {
                (Flaw::PageIsOneShort, _) => page.limit -= 1,
                (Flaw::PageIgnoresItsBytes, _) => page.bytes = usize::MAX,
                (Flaw::PageIncludesItsKey, After::Alarms(_)) => page.after = After::Alarms(None),
                _ => {}
            }
        }
        let mut loaded = self.inner.load(&flawed).await?;
        for (page, loaded) in pages.iter().zip(&mut loaded) {
            let Rows::Alarms(rows) = &mut loaded.rows else { continue };
            match (self.flaw, &page.after) {
                (Flaw::PageIncludesItsKey, After::Alarms(Some(key))) => rows.retain(|row| row.key() >= *key),
                (Flaw::AlarmsComeById, _) => rows.sort_by_key(|row| (row.name.clone(), row.id.clone())),
                (Flaw::MovedAlarmStaysAtItsOldTime, After::Alarms(None)) => {
                    rows.extend(self.put.lock().iter().cloned());
                    rows.sort_by_key(AlarmRow::key);
                    rows.dedup_by_key(|row| row.key());
                }
                _ => {}
            }
        }
        if self.is(Flaw::EmptyPageIsNotTheLast) {
            for loaded in &mut loaded {
                loaded.is_last &= match &loaded.rows {
                    Rows::Alarms(rows) => !rows.is_empty(),
                    Rows::Inbox(rows) => !rows.is_empty(),
                    Rows::Dead(rows) => !rows.is_empty(),
                };
            }
        }
        if self.is(Flaw::EndIsNotTold) {
            loaded.iter_mut().for_each(|loaded| loaded.is_last = false);
        }
        if self.is(Flaw::OnlyTheFirstPageIsAnswered) {
            loaded.iter_mut().skip(1).for_each(|loaded| match &mut loaded.rows {
                Rows::Alarms(rows) => rows.clear(),
                Rows::Inbox(rows) => rows.clear(),
                Rows::Dead(rows) => rows.clear(),
            });
        }
        Ok(loaded)
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        let mut flawed = Read { name: self.name(&read.name), ..read.clone() };
        let (ReadRange::Storage(from, to) | ReadRange::Alarms(from, to)) = &mut flawed.range;
        match self.flaw {
            // The text right behind another ends in NUL.
            Flaw::RangeIncludesItsEnd => *to = to.as_ref().map(|to| format!("{to}\0").into()),
            Flaw::RangeExcludesItsStart => *from = format!("{from}\0").into(),
            Flaw::LimitIsIgnored => flawed.limit = usize::MAX,
            Flaw::ReadIgnoresItsBytes => flawed.bytes = usize::MAX,
            _ => {}
        }
        let joined = format!("{}:{}:", read.name.interface, read.name.instance);
        if self.is(Flaw::KeysAreJoinedByColons) && matches!(read.range, ReadRange::Storage(..)) {
            (flawed.name, flawed.range) =
                (self.place(&read.name, "").0, ReadRange::Storage(joined.as_str().into(), None));
        }
        let mut found = self.inner.read(&flawed).await?;
        found.is_last &= !self.is(Flaw::EndOfARangeIsNotTold);
        if let ReadRows::Storage(rows) = &mut found.rows {
            match self.flaw {
                Flaw::KeysSortAsUtf16 => rows.sort_by_key(|(key, _)| key.encode_utf16().collect::<Vec<_>>()),
                Flaw::KeysAreJoinedByColons => {
                    let strip =
                        |(key, value): &(Arc<str>, Bytes)| Some((key.strip_prefix(&joined)?.into(), value.clone()));
                    *rows = rows.iter().map_while(strip).collect();
                }
                Flaw::PrefixIsEnough => {
                    let dump = self.inner.dump();
                    let all = dump.shards.get(&read.shard).map(|shard| shard.storage.clone()).unwrap_or_default();
                    let begins = |name: &InstanceName| name.to_string().starts_with(&read.name.to_string());
                    let found = all.into_iter().filter(|((name, _), _)| begins(name));
                    *rows = found.map(|((_, key), value)| (key, value)).collect();
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Runs the case on a store with `flaw`, under a paused clock: how it failed, if it did.
fn try_out(case: &Case, flaw: Flaw) -> Result<(), String> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    let run = async {
        // Past the flaw of `TimesStartIn1970`, and a round number of seconds.
        let clock = SimClock::new(Timestamp::from_millis(1_700_000_000_000));
        let inner = MemoryStore::with_clock(Arc::new(clock));
        let (put, silent) = (Mutex::default(), Mutex::default());
        let store = Flawed {
            inner,
            flaw,
            counter: AtomicU64::new(1),
            put,
            silent,
            lives: Mutex::default(),
            members: Mutex::default(),
        };
        (case.run)(Arc::new(store)).await;
    };
    let done = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(run)));
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })
}

#[test]
fn the_reference_passes_every_case_under_a_paused_clock() {
    for case in CASES {
        assert_eq!(try_out(case, Flaw::None), Ok(()), "{}", case.name);
    }
}

#[test]
fn every_flaw_is_caught_by_the_case_named_for_it() {
    let mut missed = Vec::new();
    for (flaw, names) in CAUGHT {
        for name in *names {
            let case = CASES.iter().find(|case| case.name == *name).unwrap();
            if try_out(case, *flaw).is_ok() {
                missed.push(format!("{name} passes although {flaw:?}"));
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn every_case_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<&str> = CASES.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), CASES.len());
    assert!(CASES.len() >= 65);
}

#[test]
#[should_panic(expected = "after a move to 20")]
fn a_case_that_fails_in_a_runtime_of_its_own_fails_the_test() {
    let fixture = async {
        let store = MemoryStore::new();
        let (put, silent) = (Mutex::default(), Mutex::default());
        Flawed {
            inner: store,
            flaw: Flaw::MovedAlarmStaysAtItsOldTime,
            counter: AtomicU64::new(1),
            put,
            silent,
            lives: Mutex::default(),
            members: Mutex::default(),
        }
    };
    super::run("a_moved_alarm_leaves_no_row_at_its_old_time", || fixture);
}

#[test]
fn a_guard_lives_until_its_case_has_ended() {
    struct Guard(Arc<Mutex<Vec<&'static str>>>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.lock().push("guard dropped");
        }
    }
    let events = Arc::new(Mutex::new(vec![]));
    let guard = Guard(events.clone());
    super::run("a_commit_is_seen_at_once", || async {
        events.lock().push("store made");
        (guard, MemoryStore::new())
    });
    assert_eq!(*events.lock(), ["store made", "guard dropped"]);
}
