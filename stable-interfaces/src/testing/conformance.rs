//! One list of cases that every [`Store`] must pass.
//!
//! A case is a sentence of the trait's documentation, tried out on an empty store; nothing is asked of a store that the
//! documentation does not say. Cases know no store's insides and control no store's clock, so the same list runs on a map in
//! memory and on a server: a lease is let run out by making it tiny and claiming until the claim is granted.
//!
//! ```
//! mod my_store {
//!     stable_interfaces::testing::store_tests!(|| async { stable_interfaces::MemoryStore::new() });
//! }
//! # fn main() {}
//! ```

mod alarms;
mod claims;
mod commits;
mod dead;
mod given;
mod hostile;
mod inbox;
mod members;
mod owners;
mod pages;
mod storage;
mod watch;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::store::Store;
use crate::sync::Arc;

/// The time that one case may take before it counts as hanging. Slow servers need a few seconds for the largest.
const CASE_LIMIT: Duration = Duration::from_secs(120);

/// The result that the argument of [`store_tests!`](crate::testing::store_tests) may give: a store, or a tuple of something that
/// must live as long as the test (a directory, a server) and a store.
pub trait Fixture {
    /// The value that is kept until the case has ended.
    type Guard;

    /// The guard and the store.
    fn open(self) -> (Self::Guard, Arc<dyn Store>);
}

impl<S: Store> Fixture for S {
    type Guard = ();

    fn open(self) -> ((), Arc<dyn Store>) {
        ((), Arc::new(self))
    }
}

impl<S: Store> Fixture for Arc<S> {
    type Guard = ();

    fn open(self) -> ((), Arc<dyn Store>) {
        ((), self)
    }
}

impl Fixture for Arc<dyn Store> {
    type Guard = ();

    fn open(self) -> ((), Arc<dyn Store>) {
        ((), self)
    }
}

impl<G, F: Fixture> Fixture for (G, F) {
    type Guard = (F::Guard, G);

    fn open(self) -> ((F::Guard, G), Arc<dyn Store>) {
        let (inner, store) = self.1.open();
        ((inner, self.0), store)
    }
}

/// A case under way; it panics where the store breaks its contract.
pub type CaseRun = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One thing a store must do.
#[derive(Clone, Copy)]
pub struct Case {
    /// The demand on the store, as a sentence in the form of an identifier.
    pub name: &'static str,
    /// Tries it on an empty store.
    pub run: fn(Arc<dyn Store>) -> CaseRun,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

/// The list. It is handed to another macro together with that macro's arguments, so that the table below and the tests of a
/// backend cannot differ.
#[doc(hidden)]
#[macro_export]
macro_rules! __store_cases {
    ([$($then:tt)*] [$($args:tt)*]) => {
        $($then)*! { [$($args)*]
            claims::a_fresh_shard_is_granted_clean_at_epoch_one,
            claims::grants_come_in_the_order_asked_for,
            claims::each_change_of_owner_raises_the_epoch_by_one,
            claims::repeating_a_claim_keeps_epoch_and_clean_mark,
            claims::a_shard_given_up_and_claimed_again_has_a_greater_epoch,
            claims::a_start_takes_the_shards_of_its_own_host_name_at_once,
            claims::a_start_ends_the_earlier_incarnation_wholly,
            claims::a_start_leaves_other_host_names_alone,
            claims::a_running_claim_takes_nothing_from_a_living_lease_of_its_own_host_name,
            claims::a_held_shard_names_its_holder_and_the_time_left,
            claims::an_expired_lease_can_be_taken_and_is_not_clean,
            claims::a_claim_grants_what_is_free_and_names_what_is_held,
            claims::clean_speaks_of_the_last_owner_only,
            claims::a_shard_of_an_ended_life_is_not_clean_whenever_it_is_claimed,
            claims::a_claim_starts_the_lease_of_all_shards_anew,
            claims::each_claim_is_told_the_same_number_of_overlapping_writes,
            claims::a_replaced_incarnation_cannot_claim,
            claims::another_shard_count_is_refused_with_both_numbers,
            claims::another_hash_version_is_refused_with_both_numbers,
            claims::a_refused_configuration_ends_and_grants_nothing,
            claims::of_many_claimers_at_once_one_gets_each_shard,
            claims::claim_post_and_renew_tell_the_same_clock,
            claims::renew_lists_owned_shards_ascending,
            claims::an_unknown_incarnation_cannot_renew,
            claims::a_replaced_incarnation_cannot_renew,
            claims::renew_extends_a_lease_that_ran_out,
            claims::renew_leaves_out_shards_that_were_taken,
            claims::renew_names_owned_shards_with_inbox_rows,
            claims::a_released_shard_is_free_at_once_and_clean,
            claims::a_release_gives_up_only_the_shards_named,
            claims::a_release_that_comes_late_undoes_no_later_claim,
            claims::a_release_by_somebody_else_changes_nothing,
            claims::releasing_twice_is_safe,
            claims::a_released_shard_keeps_its_rows,
            claims::the_old_owner_writes_nothing_after_its_release,
            members::a_join_is_seen_by_the_next_of_the_others,
            members::whoever_owns_nothing_sees_the_members_and_changes_none,
            members::every_claim_is_told_the_same_name_of_the_store,
            members::a_member_is_as_it_has_said,
            members::the_number_of_members_changes_with_them_and_only_then,
            members::a_member_ends_with_its_lease_by_the_clock_of_the_store,
            members::a_start_takes_the_place_of_the_member_of_its_name,
            members::one_that_leaves_is_told_so_and_gone_when_it_owns_nothing,
            members::whoever_leaves_is_leaving_to_its_end,
            members::one_that_has_left_comes_back_by_no_claim_or_renewal,
            members::one_that_owns_nothing_and_does_not_leave_stays,
            members::a_cordon_is_seen_by_all_until_it_is_taken_away,
            members::a_cordon_that_comes_late_undoes_no_later_one,
            members::hosts_of_the_other_placement_are_refused_while_one_holds_a_lease,
            members::two_hundred_members_are_all_seen,
            members::a_hint_follows_a_join_a_release_a_cordon_and_a_leave,
            commits::a_commit_is_seen_at_once,
            commits::a_fenced_batch_leaves_nothing_and_the_others_land,
            commits::an_epoch_of_the_past_is_fenced,
            commits::an_epoch_of_the_future_is_fenced,
            commits::another_incarnation_is_fenced_under_the_right_epoch,
            commits::a_shard_never_claimed_takes_no_write,
            commits::an_owner_whose_lease_ran_out_writes_until_another_claims,
            commits::a_repeated_write_is_done_without_being_applied,
            commits::a_repeat_with_other_contents_changes_nothing,
            commits::a_repeat_of_a_part_of_a_write_is_done_without_being_applied,
            commits::a_number_counts_for_its_lane_or_for_its_shard_as_the_store_says,
            commits::a_repeat_after_the_shard_was_lost_is_fenced,
            commits::a_repeat_answers_for_each_batch,
            commits::an_older_write_is_stale_and_changes_nothing,
            commits::lanes_count_separately,
            commits::sequences_may_skip_and_are_compared_as_whole_numbers,
            commits::a_new_incarnation_counts_from_one_again,
            commits::a_late_write_after_a_newer_claim_changes_nothing,
            commits::a_batch_that_cannot_be_stored_leaves_nothing_of_itself,
            commits::a_thousand_operations_land_in_one_batch,
            commits::four_mebibytes_land_in_one_batch,
            commits::one_write_may_span_many_shards,
            commits::all_kinds_of_operations_land_together,
            owners::many_lanes_may_commit_at_once,
            owners::concurrent_owners_never_interleave,
            owners::a_fence_holds_while_writes_are_under_way,
            alarms::an_alarm_comes_back_as_it_was_put,
            alarms::alarms_come_in_order_of_time_interface_instance_and_id,
            alarms::a_moved_alarm_leaves_no_row_at_its_old_time,
            alarms::an_equal_revision_replaces_the_alarm,
            alarms::a_greater_revision_replaces_the_alarm,
            alarms::a_smaller_revision_leaves_the_alarm_as_it_is,
            alarms::revisions_compare_as_numbers_epoch_first,
            alarms::removing_by_a_smaller_revision_leaves_the_alarm,
            alarms::removing_by_an_equal_or_greater_revision_removes_the_alarm,
            alarms::removing_an_absent_alarm_does_nothing,
            alarms::a_removed_alarm_can_be_put_again,
            alarms::one_alarm_id_in_two_instances_is_two_alarms,
            alarms::dates_from_year_1_to_9999_keep_their_order,
            alarms::large_meta_is_kept_byte_by_byte,
            alarms::an_instances_alarms_are_read_by_id,
            alarms::alarms_survive_a_change_of_owner,
            inbox::a_posted_message_comes_back_as_it_was_posted,
            inbox::a_post_needs_no_claim,
            inbox::a_second_post_of_an_id_is_a_duplicate_and_the_first_stays,
            inbox::a_duplicate_within_one_call_is_told,
            inbox::posts_of_one_id_at_the_same_time_insert_one,
            inbox::a_removed_message_can_be_posted_again,
            inbox::a_repeated_removal_leaves_what_was_posted_under_its_id_since,
            inbox::one_message_id_in_two_instances_is_two_messages,
            inbox::headers_keep_order_repetitions_and_bytes,
            inbox::bodies_are_any_bytes,
            inbox::messages_come_in_order_of_arrival,
            inbox::put_message_changes_all_but_arrival_headers_and_body,
            inbox::put_message_on_a_missing_row_does_nothing,
            inbox::removing_a_message_of_another_arrival_does_nothing,
            inbox::a_message_that_cannot_be_stored_leaves_nothing_of_its_call,
            inbox::posts_and_commits_at_once_lose_nothing,
            watch::a_hint_follows_a_post,
            watch::two_listeners_both_hear_of_a_post,
            watch::hints_come_for_shards_of_nobody,
            dead::a_dead_alarm_comes_back_as_it_was_put,
            dead::a_dead_message_comes_back_as_it_was_put,
            dead::a_dead_letter_replaces_one_with_the_same_key,
            dead::a_dead_alarm_and_a_dead_message_may_share_an_id,
            dead::dead_letters_come_oldest_first,
            dead::a_removed_dead_letter_is_gone,
            storage::a_value_is_put_replaced_and_deleted,
            storage::deleting_an_absent_value_does_nothing,
            storage::values_are_any_bytes,
            storage::a_range_has_its_start_and_not_its_end,
            storage::an_empty_or_reversed_range_has_nothing,
            storage::a_read_is_limited_and_starts_at_the_smallest_key,
            storage::a_read_sees_one_instance_of_one_interface,
            storage::an_instance_without_rows_reads_as_empty,
            storage::a_read_has_no_more_bytes_than_it_may_and_one_row_at_least,
            storage::the_end_of_a_range_is_told,
            storage::anyone_may_read,
            hostile::hostile_instance_ids_keep_apart_and_in_byte_order,
            hostile::hostile_alarm_ids_keep_apart_and_in_byte_order,
            hostile::hostile_storage_keys_keep_apart_and_in_byte_order,
            hostile::hostile_message_ids_keep_apart,
            hostile::hostile_dead_letters_keep_apart_and_in_byte_order,
            hostile::names_that_are_equal_when_joined_keep_apart,
            hostile::an_id_that_begins_another_is_not_read_with_it,
            hostile::ids_of_512_bytes_and_keys_of_1024_bytes_fit,
            pages::a_page_starts_strictly_after_its_key,
            pages::a_page_may_start_after_a_key_that_is_not_there,
            pages::a_page_of_one_row_walks_through_everything,
            pages::a_thousand_rows_are_paged_without_gaps_or_repeats,
            pages::fewer_rows_than_the_limit_means_no_more,
            pages::a_page_has_no_more_bytes_than_it_may_and_one_row_at_least,
            pages::a_page_without_rows_is_the_last,
            pages::a_page_of_keys_has_the_keys_of_its_rows,
            pages::many_pages_are_answered_in_the_order_asked_for,
            pages::shards_do_not_mix,
            pages::inbox_and_dead_letters_are_paged_likewise,
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __store_tests {
    ($make:expr $(,)?) => {
        $crate::__store_cases! { [$crate::__store_test_each] [$make] }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __store_test_each {
    ([$make:expr] $($group:ident :: $name:ident,)*) => {
        /// One function for all of them: an expression in each would be a type of its own, and `run` compiled once for each.
        #[cfg(test)]
        fn __store_fixture() -> impl ::std::future::Future<Output = impl $crate::testing::conformance::Fixture> {
            ($make)()
        }

        $(
            #[test]
            fn $name() {
                $crate::testing::conformance::run(stringify!($name), __store_fixture);
            }
        )*
    };
}

macro_rules! table {
    ([] $($group:ident :: $name:ident,)*) => {
        &[$(Case { name: stringify!($name), run: |store| Box::pin($group::$name(store)) },)*]
    };
}

/// Every case, in the order of the contract.
pub const CASES: &[Case] = __store_cases! { [table] [] };

/// Runs the case called `name` on the store that `make` gives, in a runtime of its own with several threads.
///
/// [`store_tests!`](crate::testing::store_tests) makes a test of each case; this runs a single one.
///
/// # Panics
/// If the store breaks the contract, if the case takes more than two minutes, or if there is no such case.
#[allow(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "a suite for real stores runs in real time and fails by panicking"
)]
pub fn run<F, M>(name: &str, make: F)
where
    F: FnOnce() -> M,
    M: Future<Output: Fixture>,
{
    let case = CASES.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("there is no case {name}"));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().expect("a test machine can start a runtime");
    runtime.block_on(async {
        let (guard, store) = make().await.open();
        let done = tokio::time::timeout(CASE_LIMIT, (case.run)(store)).await;
        drop(guard);
        assert!(done.is_ok(), "{name}: the store did not answer within {CASE_LIMIT:?}");
    });
}

#[cfg(test)]
mod tests;
