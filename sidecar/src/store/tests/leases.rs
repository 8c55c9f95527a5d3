//! One process at a time has the lease of scheduled jobs.

use affinity::wire::{LeaseHolder, LeaseReply, LeaseRequest};

use super::*;

const LASTS: Duration = Duration::from_millis(700);

fn ask(token: u64, lasts: Duration, held: bool) -> LeaseRequest {
    LeaseRequest { name: format!("server {token}"), token, for_ms: lasts.as_millis() as u64, held }
}

/// Who is said to have it, if anybody.
fn name(reply: &LeaseReply) -> Option<&str> {
    reply.holder.as_ref().map(|holder| holder.name.as_str())
}

/// Asks until it is granted; how long that took.
async fn wait(store: &Arc<dyn Store>, request: LeaseRequest) -> Duration {
    let began = tokio::time::Instant::now();
    while !store.lease(&request).await.unwrap().granted {
        assert!(began.elapsed() < PATIENCE, "it is never granted");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}

pub(super) async fn one_has_the_lease_and_it_ends_by_itself(opened: Opened) {
    let (one, other) = (&opened.one, &opened.other);
    // Somebody may have had it from a store that has forgotten that.
    let long = Duration::from_secs(600);
    assert_eq!(one.lease(&ask(1, long, false)).await.unwrap(), LeaseReply { granted: false, holder: None });
    // But who has it keeps it.
    assert_eq!(name(&one.lease(&ask(1, LASTS, true)).await.unwrap()), Some("server 1"));
    for held in [false, true] {
        let refused = other.lease(&ask(2, LASTS, held)).await.unwrap();
        assert!(!refused.granted);
        assert_eq!(name(&refused), Some("server 1"));
    }
    assert!(one.lease(&ask(1, LASTS, true)).await.unwrap().granted);
    let holder = other.roster(&Told::default()).await.unwrap().cron;
    assert!(
        holder.as_ref().is_some_and(|LeaseHolder { name, left_ms }| name == "server 1" && *left_ms <= 700),
        "{holder:?}"
    );

    // It ends by itself, and not sooner.
    assert!(one.lease(&ask(1, LASTS, true)).await.unwrap().granted);
    let waited = wait(other, ask(2, LASTS, false)).await;
    assert!(waited + Duration::from_millis(50) > LASTS, "after {waited:?}");

    // It is given back, but not by others.
    assert!(!one.lease(&ask(1, Duration::ZERO, true)).await.unwrap().granted);
    assert!(one.lease(&ask(2, Duration::ZERO, true)).await.unwrap().granted);
    assert_eq!(one.roster(&Told::default()).await.unwrap().cron, None);
    assert!(one.lease(&ask(1, LASTS, false)).await.unwrap().granted);
}
