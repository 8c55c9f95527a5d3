//! One body of tests over every store; what only one of them has is tested beside it.

use std::{collections::BTreeSet, sync::Arc};

use affinity::wire;
use tempfile::TempDir;
use tokio::{sync::mpsc::Receiver, task::JoinSet, time::timeout};

use self::{
    copies::{
        a_copy_of_somebody_outlives_one_of_nobody, an_ended_session_cannot_be_brought_back,
        only_the_owner_publishes_and_only_from_where_it_started, what_happens_to_copies_is_told,
    },
    files::{
        of_a_file_s_records_the_newest_is_kept_and_changes_are_read_once, what_is_long_gone_is_forgotten,
    },
    leases::one_has_the_lease_and_it_ends_by_itself,
    redis_server::RedisServer,
};
use super::*;

mod copies;
mod embedded_only;
mod files;
mod leases;
mod redis_only;
mod redis_server;
mod renewal;
mod rights;
mod same_replies;
mod topologies;
mod values;

/// Long enough for anything that should come, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(10);
const LONG: Lifetimes = alike(Duration::from_secs(604_800));
/// The embedded store counts in whole seconds, so this is more than two and at most three.
const SHORT_TIME: Duration = Duration::from_secs(3);
const SHORT: Lifetimes = alike(SHORT_TIME);
/// What nobody returns to is forgotten soon.
const PROVISIONAL: Lifetimes = Lifetimes { provisional: SHORT_TIME, ..LONG };

const fn alike(lifetime: Duration) -> Lifetimes {
    Lifetimes { provisional: lifetime, durable: lifetime }
}

fn key(name: &str) -> SessionKey {
    SessionKey::of_session_id(name.as_bytes())
}

fn claim(name: &str, node: &str, expect: u64) -> Claim {
    Claim { key: key(name), node: NodeId::new(node).unwrap(), expect, origin: wire::Origin::Visit }
}

fn owner(node: &str, epoch: u64) -> Owner {
    Owner { node: NodeId::new(node).unwrap(), epoch }
}

fn granted(node: &str, epoch: u64) -> ClaimReply {
    ClaimReply { granted: true, owner: owner(node, epoch) }
}

fn refused(node: &str, epoch: u64) -> ClaimReply {
    ClaimReply { granted: false, owner: owner(node, epoch) }
}

fn moved(name: &str, node: &str, epoch: u64) -> Event {
    Event::Changed(Change { key: key(name), owner: Some(owner(node, epoch)) })
}

/// What two sidecars have of one store, and what keeps it alive. Only Redis can be opened twice.
struct Opened {
    one: Arc<dyn Store>,
    other: Arc<dyn Store>,
    _folder: Option<TempDir>,
    _server: Option<RedisServer>,
    _cluster: Option<harness::redis_servers::Cluster>,
}

fn open_embedded(lifetimes: Lifetimes) -> Opened {
    let folder = tempfile::tempdir().unwrap();
    let one: Arc<dyn Store> = Arc::new(Embedded::open(folder.path(), lifetimes).unwrap());
    Opened { other: Arc::clone(&one), one, _folder: Some(folder), _server: None, _cluster: None }
}

/// None if there is no redis-server.
async fn open_redis(lifetimes: Lifetimes) -> Option<Opened> {
    let server = RedisServer::start().await?;
    let [one, other] = [(); 2].map(|()| server.open("mooring", lifetimes));
    Some(Opened { one, other, _folder: None, _server: Some(server), _cluster: None })
}

/// None if there is no redis-server.
async fn open_cluster(lifetimes: Lifetimes) -> Option<Opened> {
    if topologies::no_redis() {
        return None;
    }
    let cluster = harness::redis_servers::Cluster::start().await.unwrap();
    let [one, other] = [(); 2].map(|()| topologies::open(&cluster.url(), lifetimes));
    Some(Opened { one, other, _folder: None, _server: None, _cluster: Some(cluster) })
}

macro_rules! over_every_store {
    ($($test:ident: $lifetime:expr;)*) => {
        mod in_embedded {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    super::$test(open_embedded($lifetime)).await;
                }
            )*
        }

        mod in_a_redis_cluster {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    if let Some(opened) = open_cluster($lifetime).await {
                        super::$test(opened).await;
                    }
                }
            )*
        }

        mod in_redis {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    if let Some(opened) = open_redis($lifetime).await {
                        super::$test(opened).await;
                    }
                }
            )*
        }
    };
}

over_every_store! {
    a_session_is_claimed_once_and_moves_to_who_knows_its_owner: LONG;
    a_claim_of_an_absent_session_continues_its_epoch: LONG;
    changes_are_told_and_first_claims_are_not: LONG;
    of_many_that_claim_at_once_one_wins: LONG;
    many_sessions_keep_apart: LONG;
    sessions_are_kept_for_as_long_as_they_are_used: SHORT;
    what_nobody_comes_back_with_is_forgotten_soon: PROVISIONAL;
    all_sessions_are_found_page_by_page: LONG;
    nodes_register_and_are_drained: LONG;
    only_the_owner_publishes_and_only_from_where_it_started: LONG;
    an_ended_session_cannot_be_brought_back: LONG;
    a_copy_of_somebody_outlives_one_of_nobody: PROVISIONAL;
    what_happens_to_copies_is_told: LONG;
    one_has_the_lease_and_it_ends_by_itself: LONG;
    of_a_file_s_records_the_newest_is_kept_and_changes_are_read_once: LONG;
    what_is_long_gone_is_forgotten: SHORT;
}

/// Follows a store, and returns once changes arrive: stores do not say since when they are followed.
async fn follow(store: &Arc<dyn Store>) -> Receiver<Event> {
    let (sender, mut events) = mpsc::channel(1_024);
    let followed = Arc::clone(store);
    tokio::spawn(async move { followed.follow(sender).await });
    let name = format!("probe {}", rand::random::<u64>());
    for (expect, node) in (0..100).zip(["probe-a", "probe-b"].into_iter().cycle()) {
        assert_eq!(store.claim(claim(&name, node, expect)).await.unwrap(), granted(node, expect + 1));
        if let Ok(Some(Event::Changed(_))) = timeout(Duration::from_millis(100), events.recv()).await {
            return events;
        }
    }
    panic!("no change is told");
}

/// The next event that is not of [`follow`]'s own making.
async fn next(events: &mut Receiver<Event>) -> Event {
    let of_probe = |owner: &Owner| owner.node.as_str().starts_with("probe-");
    let next = async {
        loop {
            match events.recv().await.expect("it still follows") {
                Event::Changed(change) if change.owner.as_ref().is_some_and(of_probe) => {}
                event => break event,
            }
        }
    };
    timeout(PATIENCE, next).await.expect("something is told")
}

async fn a_session_is_claimed_once_and_moves_to_who_knows_its_owner(opened: Opened) {
    let store = &opened.one;
    assert_eq!(store.owner(key("s")).await.unwrap(), None, "nobody claimed it");
    assert_eq!(store.claim(claim("s", "a", 0)).await.unwrap(), granted("a", 1));
    assert_eq!(opened.other.owner(key("s")).await.unwrap(), Some(owner("a", 1)));
    // Its owner may claim it again, whatever it believes, and nothing changes.
    for expect in [0, 1, 7] {
        assert_eq!(store.claim(claim("s", "a", expect)).await.unwrap(), granted("a", 1));
    }
    for wrong in [0, 2, 7] {
        assert_eq!(opened.other.claim(claim("s", "b", wrong)).await.unwrap(), refused("a", 1));
    }
    assert_eq!(store.owner(key("s")).await.unwrap(), Some(owner("a", 1)), "refusals change nothing");
    assert_eq!(opened.other.claim(claim("s", "b", 1)).await.unwrap(), granted("b", 2));
    assert_eq!(store.claim(claim("s", "a", 1)).await.unwrap(), refused("b", 2), "it has moved since");
    assert_eq!(store.claim(claim("s", "a", 2)).await.unwrap(), granted("a", 3));
    assert_eq!(opened.other.owner(key("s")).await.unwrap(), Some(owner("a", 3)));
    store.ping().await.unwrap();
}

async fn a_claim_of_an_absent_session_continues_its_epoch(opened: Opened) {
    let mut events = follow(&opened.other).await;
    assert_eq!(opened.one.claim(claim("s", "a", 41)).await.unwrap(), granted("a", 42));
    assert_eq!(next(&mut events).await, moved("s", "a", 42), "somebody may have cached an earlier owner");
    assert_eq!(opened.one.owner(key("s")).await.unwrap(), Some(owner("a", 42)));
    // The greatest epoch that can still grow.
    let last = LARGEST_EPOCH - 1;
    assert_eq!(opened.one.claim(claim("t", "a", last)).await.unwrap(), granted("a", LARGEST_EPOCH));
    assert_eq!(opened.other.owner(key("t")).await.unwrap(), Some(owner("a", LARGEST_EPOCH)));
}

async fn changes_are_told_and_first_claims_are_not(opened: Opened) {
    let mut here = follow(&opened.one).await;
    let mut there = follow(&opened.other).await;
    let store = &opened.one;
    // Of these only the moves are told, in their order: first, again, refused, moved, first, moved.
    for (name, node, expect) in
        [("s", "a", 0), ("s", "a", 1), ("s", "b", 7), ("s", "b", 1), ("t", "a", 0), ("s", "c", 2)]
    {
        store.claim(claim(name, node, expect)).await.unwrap();
    }
    for events in [&mut here, &mut there] {
        assert_eq!(next(events).await, moved("s", "b", 2));
        assert_eq!(next(events).await, moved("s", "c", 3));
    }
}

async fn of_many_that_claim_at_once_one_wins(opened: Opened) {
    for expect in [0, 1, 2] {
        let mut claims = JoinSet::new();
        for number in 0..32 {
            let store = Arc::clone(if number % 2 == 0 { &opened.one } else { &opened.other });
            // Nobody claims what it has from the round before.
            let claim = claim("s", &format!("round-{expect}-node-{number}"), expect);
            claims.spawn(async move { store.claim(claim).await.unwrap() });
        }
        let replies = claims.join_all().await;
        let winners = replies.iter().filter(|reply| reply.granted).count();
        assert_eq!(winners, 1, "{replies:?}");
        let owner = opened.one.owner(key("s")).await.unwrap().unwrap();
        assert_eq!(owner.epoch, expect + 1);
        assert!(replies.iter().all(|reply| reply.owner == owner), "{owner:?}: {replies:?}");
    }
}

async fn many_sessions_keep_apart(opened: Opened) {
    const SESSIONS: usize = 3_000;
    let node = |number: usize| format!("node-{}", number % 7);
    let mut claims = JoinSet::new();
    for number in 0..SESSIONS {
        let store = Arc::clone(&opened.one);
        let claim = claim(&format!("session {number}"), &node(number), 0);
        claims.spawn(async move { store.claim(claim).await.unwrap() });
    }
    assert!(claims.join_all().await.iter().all(|reply| reply.granted && reply.owner.epoch == 1));
    for number in 0..SESSIONS {
        let found = opened.other.owner(key(&format!("session {number}"))).await.unwrap();
        assert_eq!(found, Some(owner(&node(number), 1)), "session {number}");
    }
    assert_eq!(opened.one.owner(key("session -1")).await.unwrap(), None);
}

async fn sessions_are_kept_for_as_long_as_they_are_used(opened: Opened) {
    let store = &opened.one;
    for name in ["asked for", "claimed", "unused", "unused too"] {
        store.claim(claim(name, "a", 0)).await.unwrap();
    }
    for _ in 0..7 {
        tokio::time::sleep(SHORT_TIME / 6).await;
        assert_eq!(store.owner(key("asked for")).await.unwrap(), Some(owner("a", 1)));
        // A claim of a session that is forgotten would be granted too, as the next epoch.
        assert_eq!(store.claim(claim("claimed", "a", 1)).await.unwrap(), granted("a", 1));
    }
    assert_eq!(store.owner(key("unused")).await.unwrap(), None);
    // Who has not seen it go goes on with its epoch; who has begins anew.
    assert_eq!(store.claim(claim("unused", "b", 1)).await.unwrap(), granted("b", 2));
    assert_eq!(store.claim(claim("unused too", "b", 0)).await.unwrap(), granted("b", 1));
    tokio::time::sleep(SHORT_TIME + Duration::from_millis(300)).await;
    for name in ["asked for", "claimed"] {
        assert_eq!(store.owner(key(name)).await.unwrap(), None, "it is not used any more");
    }
}

async fn what_nobody_comes_back_with_is_forgotten_soon(opened: Opened) {
    let store = &opened.one;
    for name in ["used", "moved", "unused"] {
        store.claim(claim(name, "a", 0)).await.unwrap();
    }
    assert!(opened.other.owner(key("used")).await.unwrap().is_some());
    store.owner(key("moved")).await.unwrap();
    store.claim(claim("moved", "b", 1)).await.unwrap();
    tokio::time::sleep(SHORT_TIME + Duration::from_millis(300)).await;
    assert_eq!(store.owner(key("used")).await.unwrap(), Some(owner("a", 1)));
    assert_eq!(
        store.owner(key("moved")).await.unwrap(),
        Some(owner("b", 2)),
        "it lives on where it moved to"
    );
    assert_eq!(store.owner(key("unused")).await.unwrap(), None);
}

async fn all_sessions_are_found_page_by_page(opened: Opened) {
    const SESSIONS: usize = 2_500;
    let mut claims = JoinSet::new();
    for number in 0..SESSIONS {
        let store = Arc::clone(&opened.one);
        let claim = claim(&format!("session {number}"), ["a", "b"][number % 2], 0);
        claims.spawn(async move { store.claim(claim).await.unwrap() });
    }
    claims.join_all().await;
    let [published, ended] = [0, 1].map(|number| key(&format!("session {number}")));
    for (key, node) in [(published, "a"), (ended, "b")] {
        opened.one.publish(key, copies::publication(node, 0, "content")).await.unwrap();
    }
    opened.one.end(ended, EndedBy::Operator).await.unwrap();
    let (mut found, mut from) = (BTreeSet::new(), None::<String>);
    loop {
        let page = opened.other.list(from.as_deref()).await.unwrap();
        for Listed { key, owner, version } in page.sessions {
            assert_eq!((owner.epoch, version), (1, u64::from(key == published)));
            found.insert((key, owner.node.to_string()));
        }
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    let expected = (0..SESSIONS).map(|n| (key(&format!("session {n}")), ["a", "b"][n % 2].to_owned()));
    assert_eq!(found, expected.collect());
    assert!(opened.one.list(Some("nonsense")).await.is_err());
}

async fn nodes_register_and_are_drained(opened: Opened) {
    let mut events = follow(&opened.other).await;
    let node = |address: &str, state| Node {
        id: NodeId::new("a").unwrap(),
        http: address.parse().unwrap(),
        gevent: Some("127.0.0.1:9".parse().unwrap()),
        weight: 3,
        state,
        full: false,
        carries: false,
    };
    let carried =
        CarriedReport { sessions: 3, waiting: 1, looked_at: 2, of: 9, complete: false, left_alone: 4 };
    let condition = |probe_ms| Condition { probe_ms, carried: Some(carried), problem: Some("a b".into()) };
    let own = Told { name: "other".into(), ..Told::default() };
    let roster = async || opened.other.roster(&own).await.unwrap();
    assert_eq!(roster().await, Roster::default());
    let here = node("127.0.0.1:1", affinity::NodeState::Active);
    for (registered, probe_ms) in
        [(here.clone(), 1.5), (here, 2.5), (node("127.0.0.2:1", affinity::NodeState::Down), 2.5)]
    {
        opened
            .one
            .register(&Registration { node: registered, condition: condition(probe_ms) })
            .await
            .unwrap();
    }
    // Its heartbeat is no news, a new address is.
    assert_eq!((next(&mut events).await, next(&mut events).await), (Event::Nodes, Event::Nodes));
    let found = roster().await.nodes;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].node, node("127.0.0.2:1", affinity::NodeState::Down));
    assert_eq!(found[0].condition, condition(2.5));
    assert!(found[0].age < Duration::from_secs(3), "{:?}", found[0].age);

    let id = NodeId::new("a").unwrap();
    let word = |draining, said| Drain { draining, said };
    for (new, expected) in [
        (word(true, 100), word(true, 100)),
        (word(true, 200), word(true, 200)),
        // Who speaks last is heard, whatever the clocks say.
        (word(false, 150), word(false, 201)),
    ] {
        assert_eq!(opened.one.set_draining(&id, new).await.unwrap(), expected);
        assert_eq!(roster().await.drains, BTreeMap::from([(id.clone(), expected)]));
    }
    // What was said before that is not put back.
    assert!(!opened.one.restore_drain(&id, word(true, 200)).await.unwrap());
    assert_eq!((next(&mut events).await, next(&mut events).await), (Event::Nodes, Event::Nodes));
    opened.one.claim(claim("s", "a", 1)).await.unwrap();
    assert_eq!(next(&mut events).await, moved("s", "a", 2), "nothing else is told");
}
