//! Leases of who computes a value of the ORM cache, in Redis.

use super::*;

const KEY: &str = "a value";

async fn leased(values: &Values, token: &str, lasts: Duration) -> bool {
    matches!(values.find(KEY, token, lasts).await.unwrap(), Found::Leased)
}

#[tokio::test]
async fn who_comes_late_ends_nobody_else_s_lease() {
    let Some(redis) = RedisServer::start().await else { return };
    let open = || Values::open(&redis.url(), &Access::default(), "test").unwrap();
    let (one, other) = (open(), open());
    let soon = Duration::from_millis(30);
    assert!(leased(&one, "first", soon).await);
    let next = async {
        while !leased(&other, "second", PATIENCE * 6).await {
            tokio::time::sleep(soon / 3).await;
        }
    };
    timeout(PATIENCE, next).await.expect("it ends by itself");
    // The first lets go now, as does who never had it; another lease of the same sidecar is none of theirs.
    for token in ["first", "never", ""] {
        one.release(KEY, token).await.unwrap();
        assert!(!leased(&one, "third", PATIENCE).await, "{token:?} ended the lease of the second");
    }
    other.release(KEY, "second").await.unwrap();
    assert!(leased(&one, "third", PATIENCE).await);

    // Whose value comes late ends nobody's lease either, and is found all the same.
    other.put(KEY, "second", b"late", PATIENCE).await.unwrap();
    assert!(
        matches!(one.find(KEY, "fourth", PATIENCE).await.unwrap(), Found::Value(value) if value == b"late")
    );
    other.remove(KEY).await.unwrap();
    assert!(!leased(&one, "fourth", PATIENCE).await, "the late value ended the lease of the third");
    one.put(KEY, "third", b"in time", PATIENCE).await.unwrap();
    one.remove(KEY).await.unwrap();
    assert!(leased(&other, "fourth", PATIENCE).await);
}
