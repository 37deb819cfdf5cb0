//! The contract of [`Store`], as maps: who owns which shard, what a write is answered, what is stored then.
//!
//! Written from the contract's text and from no store. Of two things a model can know nothing, and leaves them open: when the store's
//! clock stamps a message, which is looked up once it is posted; and how a write is answered that a newer one has overtaken: it may
//! be called stale or be taken for a repeat, as long as it changes nothing.

mod model;
mod rows;
mod steps;
mod tested;

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;
use proptest_state_machine::ReferenceStateMachine;
use stable_interfaces::store::ClaimKind;

pub(crate) use self::model::Model;
use self::model::{Expected, Shard};
use self::rows::{BODIES, IDS, LIVES, NAMES, SHARDS};
use self::steps::{Number, Step, Under, change, kind};
pub(crate) use self::tested::Tested;

/// `FORGETS_LIVES`: whether all owners are gone once it is opened again, as with a store that one process has for itself.
pub(crate) struct Contract<const FORGETS_LIVES: bool>;

impl<const FORGETS_LIVES: bool> ReferenceStateMachine for Contract<FORGETS_LIVES> {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        let shard = Shard { is_clean: true, ..Shard::default() };
        Just(Model {
            forgets_lives: FORGETS_LIVES,
            closed: 0,
            is_configured: false,
            lives: BTreeMap::new(),
            shards: (0..SHARDS).map(|id| (id, shard.clone())).collect(),
            expected: Expected::Nothing,
        })
        .boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Step> {
        // Mostly owners: what others send is refused in one way.
        let present = |owner: &u64| (1..=LIVES).contains(owner);
        let owners = model.shards.values().filter_map(|shard| shard.owner?.checked_sub(LIVES * model.closed));
        let owners: BTreeSet<u64> = owners.filter(present).collect();
        let owners: Vec<u64> = if owners.is_empty() { vec![1] } else { owners.into_iter().collect() };
        let owner = proptest::sample::select(owners);
        let writer = prop_oneof![8 => owner.clone(), 1 => 1..=LIVES];
        let shards = || subsequence((0..SHARDS).collect::<Vec<_>>(), 1..=SHARDS as usize).prop_shuffle();
        let under = prop_oneof![16 => Just(Under::Granted), 2 => Just(Under::Newest), 1 => Just(Under::Future)];
        let number = prop_oneof![
            12 => (1..4_u64).prop_map(Number::Next),
            3 => Just(Number::Repeated),
            2 => (0..3_usize).prop_map(Number::Overtaken),
        ];
        let batches = proptest::collection::btree_map(0..SHARDS, (under, vec(change(), 1..7)), 1..=SHARDS as usize);
        let page = (0..SHARDS, kind(), proptest::option::of(0..6_usize), prop_oneof![1..4_usize, Just(100)]);
        prop_oneof![
            3 => (1..=LIVES, shards(), any::<bool>(), prop::bool::weighted(0.4), prop::bool::weighted(0.05)).prop_map(
                |(life, shards, is_long, is_start, is_configured_otherwise)| {
                    let kind = if is_start { ClaimKind::Start } else { ClaimKind::Running };
                    Step::Claim { life, shards, gives_up: Vec::new(), is_long, kind, is_configured_otherwise }
                }
            ),
            1 => (owner, shards(), shards(), any::<bool>(), prop::bool::weighted(0.2)).prop_map(
                |(life, shards, gives_up, is_long, is_start)| {
                    let kind = if is_start { ClaimKind::Start } else { ClaimKind::Running };
                    Step::Claim { life, shards, gives_up, is_long, kind, is_configured_otherwise: false }
                }
            ),
            1 => (1..=LIVES, any::<bool>()).prop_map(|(life, is_long)| Step::Renew { life, is_long }),
            1 => (1..=LIVES, shards(), prop_oneof![2 => Just(Some(0)), 1 => Just(Some(1)), 1 => Just(None)])
                .prop_map(|(life, shards, back)| Step::Release { life, shards, back }),
            18 => (writer, 0..2_u16, number, batches).prop_map(|(life, lane, number, batches)| {
                Step::Commit { life, lane, number, batches }
            }),
            4 => vec((0..SHARDS, 0..NAMES.len(), 0..IDS.len(), 0..BODIES.len()), 1..5).prop_map(Step::Post),
            3 => vec(page, 1..4).prop_map(Step::Load),
            3 => (
                (0..SHARDS, 0..NAMES.len(), any::<bool>()),
                (0..IDS.len(), proptest::option::of(0..IDS.len()), prop_oneof![1..4_usize, Just(100)]),
            )
                .prop_map(|((shard, who, is_storage), (from, to, limit))| {
                    Step::Read { shard, who, is_storage, from, to, limit }
                }),
            1 => Just(Step::Reopen),
        ]
        .boxed()
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        model.expected = model.step(step);
        model
    }
}
