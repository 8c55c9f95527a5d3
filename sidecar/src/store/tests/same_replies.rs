//! The embedded store and Redis decide alike: one in Rust, the other in Lua.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;

const STEPS: usize = 1_500;

/// One step of a random run, on both stores.
async fn step(random: &mut StdRng, stores: &[Arc<dyn Store>; 2]) -> (String, bool) {
    let name = format!("session {}", random.random_range(0..40));
    if random.random_ratio(1, 5) {
        let owners = [stores[0].owner(key(&name)).await.unwrap(), stores[1].owner(key(&name)).await.unwrap()];
        return (format!("the owner of {name}: {owners:?}"), owners[0] == owners[1]);
    }
    // Mostly what is true, so that sessions move; else what was true, will be, or never was.
    let present = stores[0].owner(key(&name)).await.unwrap().map_or(0, |owner| owner.epoch);
    let expect = match random.random_range(0..10) {
        0..6 => present,
        6 => present.saturating_sub(1),
        7 => present + 1,
        8 => random.random_range(0..5),
        _ => random.random_range(0..LARGEST_EPOCH),
    };
    let node = ["a", "b", "odoo-3.example_X"].choose(random).unwrap();
    let claim = claim(&name, node, expect.min(LARGEST_EPOCH - 1));
    let replies =
        [stores[0].claim(claim.clone()).await.unwrap(), stores[1].claim(claim.clone()).await.unwrap()];
    (format!("{name}, {claim:?}: {replies:?}"), replies[0] == replies[1])
}

#[tokio::test(flavor = "multi_thread")]
async fn both_stores_give_the_same_replies_and_tell_the_same_changes() {
    let embedded = open_embedded(LONG);
    let Some(redis) = open_redis(LONG).await else { return };
    let stores = [Arc::clone(&embedded.one), Arc::clone(&redis.one)];
    let mut followers = [follow(&stores[0]).await, follow(&stores[1]).await];
    let told = followers.each_mut().map(|events| {
        let (sender, fresh) = mpsc::channel(1);
        let mut events = std::mem::replace(events, fresh);
        drop(sender);
        tokio::spawn(async move {
            let mut told = Vec::new();
            loop {
                match next(&mut events).await {
                    event if event == moved("the end", "a", 2) => return told,
                    event => told.push(event),
                }
            }
        })
    });
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for number in 0..STEPS {
        let (what, same) = step(&mut random, &stores).await;
        assert!(same, "seed {seed}, step {number}: {what}");
    }
    for store in &stores {
        store.claim(claim("the end", "a", 1)).await.unwrap();
    }
    let [embedded, redis] = told;
    let (embedded, redis) = (embedded.await.unwrap(), redis.await.unwrap());
    assert!(embedded.len() > STEPS / 5, "only {} sessions moved", embedded.len());
    assert_eq!(embedded, redis, "seed {seed}");
}
