//! What Redis refuses is named: by an ACL that is too narrow, or because it takes no writes.

use super::{redis_server::RedisServer, *};

/// The docs' line for an ACL user, as a command.
fn documented() -> String {
    let docs = include_str!("../../../../docs/redis.md");
    let line = docs.lines().find(|line| line.starts_with("user sidecar on ")).unwrap();
    line.replacen("user", "ACL SETUSER", 1)
}

/// What a fresh sidecar says of its store.
async fn ping(server: &RedisServer, access: &Access) -> Result<(), StoreError> {
    Redis::open(&server.url(), access, "mooring", LONG).unwrap().ping().await
}

fn named(answer: Result<(), StoreError>) -> (String, String) {
    match answer {
        Err(StoreError::Refused { problem, remedy }) => (problem, remedy),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_right_that_is_missing_is_named() {
    let Some(server) = RedisServer::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let password_file = folder.path().join("password");
    std::fs::write(&password_file, "PASSWORD\n").unwrap();
    let access =
        Access { user: Some("sidecar".into()), password_file: Some(password_file), ..Access::default() };
    let line = documented();
    server.run::<()>(&line).await;
    ping(&server, &access).await.unwrap();
    let left: Vec<String> = server.run("KEYS *").await;
    assert!(left.is_empty(), "it leaves {left:?}");
    // Of a cluster only, of older clients, or by the client itself.
    let elsewhere = ["+eval", "+ping", "+select", "+cluster|slots", "+cluster|nodes", "+cluster|shards"];
    let rights = line.split(' ').filter(|word| word.starts_with('+') && !elsewhere.contains(word));
    let mut tried = 0;
    for right in rights {
        server.run::<()>(&format!("ACL SETUSER sidecar -{}", &right[1..])).await;
        server.run::<()>("SCRIPT FLUSH").await;
        let (problem, remedy) = named(ping(&server, &access).await);
        let name = right[1..].replace('|', " ").to_uppercase();
        assert!(problem.contains(&name), "without {right}: {problem}");
        assert!(remedy.contains("user sidecar on ~mooring:* &* -@all +evalsha"), "{remedy}");
        server.run::<()>(&format!("ACL SETUSER sidecar {right}")).await;
        tried += 1;
    }
    assert!(tried > 25, "{tried}");
    ping(&server, &access).await.unwrap();
    // Another prefix than the user's.
    let other = Redis::open(&server.url(), &access, "other", LONG).unwrap();
    named(other.ping().await);
}

#[tokio::test]
async fn a_redis_that_takes_no_writes_is_no_good_one() {
    let Some(server) = RedisServer::start().await else { return };
    let access = Access::default();
    let store = server.open("mooring", LONG);
    store.claim(claim("s", "a", 0)).await.unwrap();
    for (wrong, right, word) in [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "OOM"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", "NOREPLICAS"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "READONLY"),
    ] {
        server.run::<()>(wrong).await;
        let (problem, remedy) = named(ping(&server, &access).await);
        assert!(problem.contains(word) && problem.contains("HSET"), "{problem}");
        assert!(remedy.contains("maxmemory"), "{remedy}");
        // Look-ups are answered all the while.
        assert_eq!(store.owner(key("s")).await.unwrap(), Some(owner("a", 1)), "{wrong}");
        server.run::<()>(right).await;
        ping(&server, &access).await.unwrap();
    }
}
