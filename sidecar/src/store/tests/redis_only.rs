//! What only Redis can do: be shared, be elsewhere, be away, be forgetful, and hold others' data.

use std::{collections::HashMap, time::Instant};

use super::*;

/// How long a store that is away may leave its asker in doubt; about three seconds are meant.
const DOUBT: Duration = Duration::from_secs(6);

/// Follows with nothing but what the store tells by itself.
fn follow_bare(store: &Arc<dyn Store>) -> Receiver<Event> {
    let (sender, events) = mpsc::channel(64);
    let store = Arc::clone(store);
    tokio::spawn(async move { store.follow(sender).await });
    events
}

async fn is_unreachable<T: std::fmt::Debug>(asked: impl Future<Output = Result<T, StoreError>>) {
    let started = Instant::now();
    let answer = asked.await;
    assert!(matches!(answer, Err(StoreError::Unreachable(_))), "{answer:?}");
    assert!(started.elapsed() < DOUBT, "it took {:?}", started.elapsed());
}

/// Asks until the store answers again.
async fn works_again(store: &dyn Store) {
    let started = Instant::now();
    while let Err(error) = store.ping().await {
        assert!(started.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_follower_begins_with_doubt_and_hears_of_others() {
    let Some(server) = RedisServer::start().await else { return };
    let [one, other] = [(); 2].map(|()| server.open("mooring", LONG));
    one.claim(claim("s", "a", 0)).await.unwrap();
    one.claim(claim("s", "b", 1)).await.unwrap();
    let mut events = follow_bare(&other);
    assert_eq!(next(&mut events).await, Event::Lost, "what came before may have been missed");
    one.claim(claim("s", "c", 2)).await.unwrap();
    assert_eq!(next(&mut events).await, moved("s", "c", 3), "what came before is not told again");
    other.claim(claim("s", "d", 3)).await.unwrap();
    assert_eq!(next(&mut events).await, moved("s", "d", 4), "its own changes are told as well");
}

#[tokio::test]
async fn a_server_that_forgot_or_was_away_is_doubted() {
    let Some(mut server) = RedisServer::start().await else { return };
    let store = server.open("mooring", LONG);
    let mut events = follow_bare(&store);
    assert_eq!(next(&mut events).await, Event::Lost);
    store.claim(claim("s", "a", 1)).await.unwrap();
    assert_eq!(next(&mut events).await, moved("s", "a", 2));

    server.kill();
    server.start_again().await;
    assert_eq!(next(&mut events).await, Event::Lost, "restarted");
    works_again(&*store).await;
    assert_eq!(store.owner(key("s")).await.unwrap(), None);
    store.claim(claim("s", "a", 1)).await.unwrap();
    assert_eq!(next(&mut events).await, moved("s", "a", 2), "it is followed again");

    server.run::<()>("FLUSHALL").await;
    assert_eq!(next(&mut events).await, Event::Lost, "emptied");
}

#[tokio::test]
async fn a_connection_that_breaks_costs_nothing_and_a_gap_is_seen() {
    let Some(server) = RedisServer::start().await else { return };
    let [one, other] = [(); 2].map(|()| server.open("mooring", LONG));
    let mut events = follow_bare(&other);
    assert_eq!(next(&mut events).await, Event::Lost);
    one.claim(claim("s", "a", 1)).await.unwrap();
    assert_eq!(next(&mut events).await, moved("s", "a", 2));
    server.run::<()>("CLIENT KILL TYPE normal").await;
    works_again(&*one).await;
    one.claim(claim("s", "b", 2)).await.unwrap();
    assert_eq!(next(&mut events).await, moved("s", "b", 3), "the same server has all that was told");

    // Something was told that is not there to be read.
    server.run::<()>("INCR mooring:{directory}:told").await;
    assert_eq!(next(&mut events).await, Event::Lost, "trimmed");
    one.claim(claim("s", "c", 3)).await.unwrap();
    assert_eq!(next(&mut events).await, moved("s", "c", 4));
    server.run::<()>("SET mooring:{directory}:generation other").await;
    assert_eq!(next(&mut events).await, Event::Lost, "another store");
}

#[tokio::test]
async fn a_clock_that_was_put_back_keeps_nobody_alive_and_no_lease_away() {
    let Some(server) = RedisServer::start().await else { return };
    let [one, other] = [(); 2].map(|()| server.open("mooring", LONG));
    let node = affinity::Node {
        id: NodeId::new("a").unwrap(),
        http: "127.0.0.1:1".parse().unwrap(),
        gevent: None,
        weight: 1,
        state: affinity::NodeState::Active,
        full: false,
        carries: false,
    };
    one.register(&Registration { node, condition: Condition::default() }).await.unwrap();
    one.roster(&Told::default()).await.unwrap();
    // As if all of that had been said an hour from now.
    let (seconds, _): (u64, u64) = server.run("TIME").await;
    for name in ["nodes", "sidecars"] {
        let key = format!("mooring:{{directory}}:{name}");
        let all: HashMap<String, String> = server.run(&format!("HGETALL {key}")).await;
        for (field, text) in all {
            let later = format!("{} {}", seconds + 3_600, text.split_once(' ').unwrap().1);
            server.set_field(&key, &field, &later).await;
        }
    }
    assert_eq!(other.roster(&Told::default()).await.unwrap().nodes[0].age, Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let roster = other.roster(&Told::default()).await.unwrap();
    assert!(roster.nodes[0].age > Duration::ZERO, "it would be alive for another hour");
    assert_eq!(roster.others.len(), 1);

    let remembers = "mooring:{directory}:remembers";
    server.run::<()>(&format!("SET {remembers} {}", (seconds + 3_600) * 1_000)).await;
    let ask = wire::LeaseRequest { name: "cron".into(), token: 1, for_ms: 500, held: false };
    let mut granted = false;
    for _ in 0..40 {
        granted |= one.lease(&ask).await.unwrap().granted;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(granted, "nobody would have the lease for another hour");
}

#[tokio::test]
async fn a_server_that_is_gone_is_said_so_and_used_again() {
    let Some(mut server) = RedisServer::start().await else { return };
    let store = server.open("mooring", LONG);
    assert_eq!(store.claim(claim("s", "a", 0)).await.unwrap(), granted("a", 1));
    server.kill();
    is_unreachable(store.ping()).await;
    is_unreachable(store.owner(key("s"))).await;
    is_unreachable(store.claim(claim("s", "b", 1))).await;
    server.start_again().await;
    works_again(&*store).await;
    assert_eq!(store.claim(claim("s", "b", 0)).await.unwrap(), granted("b", 1));
    assert_eq!(store.owner(key("s")).await.unwrap(), Some(owner("b", 1)));

    server.signal("STOP");
    is_unreachable(store.ping()).await;
    is_unreachable(store.owner(key("s"))).await;
    is_unreachable(store.claim(claim("s", "c", 1))).await;
    server.signal("CONT");
    works_again(&*store).await;
    assert!(store.owner(key("s")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_server_that_was_never_there_is_found_when_it_comes() {
    let Some(mut server) = RedisServer::start().await else { return };
    server.kill();
    let store = server.open("mooring", LONG);
    let mut events = follow_bare(&store);
    is_unreachable(store.owner(key("s"))).await;
    server.start_again().await;
    works_again(&*store).await;
    assert_eq!(store.claim(claim("s", "a", 0)).await.unwrap(), granted("a", 1));
    assert_eq!(next(&mut events).await, Event::Lost);
}

#[tokio::test]
async fn what_others_left_under_its_keys_is_an_error() {
    let Some(server) = RedisServer::start().await else { return };
    let store = server.open("mooring", LONG);
    let place = format!("mooring:owner:{{{}}}", key("s"));
    for command in [
        format!("SET {place} value"),
        format!("HSET {place} node ../odoo epoch 1"),
        format!("HSET {place} node a epoch one"),
        format!("HSET {place} node a epoch -1"),
        format!("HSET {place} node a epoch 18446744073709551616"),
        format!("HSET {place} node a"),
        format!("LPUSH {place} value"),
    ] {
        server.run::<()>("FLUSHALL").await;
        server.run::<()>(&command).await;
        let owner = store.owner(key("s")).await;
        assert!(matches!(owner, Err(StoreError::Foreign(_))), "{command}: {owner:?}");
        let claim = store.claim(claim("s", "b", 0)).await;
        assert!(matches!(claim, Err(StoreError::Foreign(_))), "{command}: {claim:?}");
        store.ping().await.unwrap();
    }
    // Other keys are not affected.
    assert_eq!(store.claim(claim("t", "a", 0)).await.unwrap(), granted("a", 1));
}

#[tokio::test]
async fn a_change_that_cannot_be_read_is_a_doubt() {
    let Some(server) = RedisServer::start().await else { return };
    let store = server.open("mooring", LONG);
    let mut events = follow_bare(&store);
    assert_eq!(next(&mut events).await, Event::Lost);
    for rubbish in ["x y", "key 00 node a epoch 1", "key 0 node . epoch one"] {
        server.run::<()>(&format!("XADD mooring:{{directory}}:changes * {rubbish}")).await;
        assert_eq!(next(&mut events).await, Event::Lost, "{rubbish}");
    }
    store.claim(claim("s", "a", 1)).await.unwrap();
    assert_eq!(next(&mut events).await, moved("s", "a", 2));
}

#[tokio::test]
async fn every_key_begins_with_the_prefix_and_none_tells_a_session_id() {
    let Some(server) = RedisServer::start().await else { return };
    let sid = "Kx8rD-the-session-id-is-a-bearer-secret-Wq";
    let [production, staging] = ["production", "staging:"].map(|prefix| server.open(prefix, LONG));
    for expect in [0, 1] {
        let node = ["a", "b"][expect as usize];
        production.claim(claim(sid, node, expect)).await.unwrap();
    }
    assert_eq!(staging.owner(key(sid)).await.unwrap(), None, "prefixes keep apart");
    let keys: Vec<String> = server.run("KEYS *").await;
    assert_eq!(keys.len(), 3, "an owner, the changes and their number: {keys:?}");
    assert!(keys.iter().all(|key| key.starts_with("production:")), "{keys:?}");
    staging.claim(claim(sid, "c", 7)).await.unwrap();
    let keys: Vec<String> = server.run("KEYS staging::*").await;
    assert_eq!(keys.len(), 3, "{keys:?}");
    for key in server.run::<Vec<String>>("KEYS *").await {
        let dump: Vec<u8> = server.run(&format!("DUMP {key}")).await;
        let content = String::from_utf8_lossy(&dump);
        assert!(!key.contains(&sid[..8]) && !content.contains(&sid[..8]), "{key}: {content}");
    }
}

#[tokio::test]
async fn every_record_expires_and_the_changes_are_bounded() {
    let Some(server) = RedisServer::start().await else { return };
    let store = server.open("mooring", LONG);
    for name in ["s", "t"] {
        store.claim(claim(name, "a", 0)).await.unwrap();
        let left: i64 = server.run(&format!("PTTL mooring:owner:{{{}}}", key(name))).await;
        assert!((1..=LONG.durable.as_millis() as i64).contains(&left), "{left}");
    }
    // Not all at once: each must be answered within a second, on a busy machine too.
    for thousand in 0..12 {
        let mut claims = JoinSet::new();
        for number in 0..1_000 {
            let (store, claim) = (Arc::clone(&store), claim(&format!("moved {thousand} {number}"), "a", 1));
            claims.spawn(async move { store.claim(claim).await.unwrap() });
        }
        claims.join_all().await;
    }
    let changes: usize = server.run("XLEN mooring:{directory}:changes").await;
    assert!((10_000..11_900).contains(&changes), "{changes}");
}

#[tokio::test]
async fn a_password_is_not_told() {
    let store =
        Redis::open("redis://user:s3cret@127.0.0.1:1/0", &Access::default(), "mooring", LONG).unwrap();
    let error = store.ping().await.unwrap_err();
    assert!(!format!("{store:?} {error} {error:?}").contains("s3cret"));
    for url in [
        "redis://user:s3cret@:port/0",
        "redis://user:s3cret@",
        "redis+cluster://user:s3cret@host",
        "redis+sentinel://user:s3cret@host:1",
        "http://user:s3cret@127.0.0.1",
        "s3cret",
    ] {
        let error = Redis::open(url, &Access::default(), "mooring", LONG).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    }
}

#[tokio::test]
async fn what_an_operator_said_is_put_back_into_a_store_that_lost_it() {
    let Some(server) = RedisServer::start().await else { return };
    let [one, other] = [(); 2].map(|()| server.open("mooring", LONG));
    let mut events = follow_bare(&other);
    assert_eq!(next(&mut events).await, Event::Lost);
    let (a, word) = (NodeId::new("a").unwrap(), Drain { draining: true, said: 100 });
    let drains = async || other.roster(&Told::default()).await.unwrap().drains;
    for older in ["", "0 99", "rubbish", "1", "2 300", "0 -1"] {
        server.run::<()>("DEL mooring:{directory}:drains").await;
        if !older.is_empty() {
            let client = ::redis::Client::open(server.url()).unwrap();
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            let mut set = ::redis::cmd("HSET");
            set.arg("mooring:{directory}:drains").arg("a").arg(older);
            set.query_async::<()>(&mut connection).await.unwrap();
        }
        assert!(one.restore_drain(&a, word).await.unwrap(), "{older}");
        assert!(!other.restore_drain(&a, word).await.unwrap(), "it was put back");
        assert_eq!(drains().await, BTreeMap::from([(a.clone(), word)]), "{older}");
        assert_eq!(next(&mut events).await, Event::Nodes);
    }
}

#[tokio::test]
async fn what_sidecars_tell_reaches_the_others_and_rubbish_nobody() {
    let Some(server) = RedisServer::start().await else { return };
    let [one, other] = [(); 2].map(|()| server.open("mooring", LONG));
    let told = |name: &str, load| Told {
        name: name.into(),
        loads: HashMap::from([(NodeId::new("a").unwrap(), load)]),
        ..Told::default()
    };
    server.run::<()>("HSET mooring:{directory}:sidecars x rubbish y 1").await;
    assert_eq!(one.roster(&told("one", 1)).await.unwrap().others, [], "it knows what it told");
    assert_eq!(other.roster(&told("other", 2)).await.unwrap().others, [told("one", 1)]);
    assert_eq!(one.roster(&told("one", 3)).await.unwrap().others, [told("other", 2)]);
}
