//! Redis as people run it: a cluster, Sentinels, TLS, and a user who may do no more than is needed.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use harness::{
    redis_servers::{Cluster, Server, Watched},
    tools,
};

use super::{redis_server::RedisServer, *};

/// Whether there is no Redis, which is said aloud.
pub(super) fn no_redis() -> bool {
    let missing = tools::on_path("redis-server").is_none();
    if missing {
        RedisServer::skipped("no redis-server");
    }
    missing
}

pub(super) fn open(url: &str, lifetimes: Lifetimes) -> Arc<dyn Store> {
    Arc::new(Redis::open(url, &Access::default(), "mooring", lifetimes).unwrap())
}

/// Tries again until something holds.
async fn in_time<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let started = std::time::Instant::now();
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(started.elapsed() < PATIENCE * 3, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_spreads_sessions_and_lives_through_resharding() {
    if no_redis() {
        return;
    }
    let cluster = Cluster::start().await.unwrap();
    let store = open(&cluster.url(), LONG);
    let mut events = follow(&store).await;
    for number in 0..300 {
        store.claim(claim(&format!("session {number}"), "a", 0)).await.unwrap();
    }
    for server in &cluster.servers {
        let keys: usize = server.run("DBSIZE").await.unwrap();
        assert!(keys > 50, "a server has {keys} of 300 sessions");
    }
    // One session's slot goes to another server.
    let name = format!("mooring:owner:{{{}}}", key("session 7"));
    let (slot, from) = cluster.slot(&name).await.unwrap();
    let during = async || {
        assert_eq!(store.owner(key("session 7")).await.unwrap(), Some(owner("a", 1)), "while it migrates");
    };
    assert!(cluster.move_slot(slot, from, (from + 1) % 3, during).await.unwrap() > 0);
    assert_eq!(store.claim(claim("session 7", "b", 1)).await.unwrap(), granted("b", 2));
    assert_eq!(next(&mut events).await, moved("session 7", "b", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_a_server_serves_the_other_sessions() {
    if no_redis() {
        return;
    }
    let mut cluster = Cluster::start().await.unwrap();
    for server in &cluster.servers {
        server.run::<()>("CONFIG SET cluster-require-full-coverage no").await.unwrap();
    }
    let store = open(&cluster.url(), LONG);
    for number in 0..60 {
        store.claim(claim(&format!("session {number}"), "a", 0)).await.unwrap();
    }
    drop(cluster.servers.remove(0));
    let works = in_time("nobody serves", async || {
        let mut works = 0;
        for number in 0..60 {
            works += usize::from(store.owner(key(&format!("session {number}"))).await.is_ok());
        }
        Some(works).filter(|works| *works > 20)
    });
    let works = works.await;
    assert!(works < 60, "a third of the slots is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_name_the_new_master_and_the_failover_is_a_doubt() {
    if no_redis() {
        return;
    }
    let mut redis = Watched::start().await.unwrap();
    let store = open(&redis.url(), LONG);
    let mut events = follow(&store).await;
    store.claim(claim("s", "a", 0)).await.unwrap();
    let replicated = async || (redis.replica.run::<usize>("DBSIZE").await.unwrap() > 1).then_some(());
    in_time("the replica has it", replicated).await;

    let began = std::time::Instant::now();
    redis.master.take().unwrap().kill();
    let found = in_time("the replica serves", async || store.owner(key("s")).await.ok()).await;
    println!("Sentinel failover: {:.1?} without an answer", began.elapsed());
    assert_eq!(found, Some(owner("a", 1)));
    assert_eq!(next(&mut events).await, Event::Lost, "a replica may be behind");
    assert_eq!(store.claim(claim("s", "b", 1)).await.unwrap(), granted("b", 2));
    assert_eq!(next(&mut events).await, moved("s", "b", 2));
}

/// The rules that the documentation gives a user of Redis.
const RULES: &str = "~mooring:* &* -@all +evalsha +eval +script|load +hmget +hset +hget +hgetall +hdel +hexists +del +pexpire \
                     +pttl +incr +zadd +zrem +zrangebyscore +xadd +xread +xrevrange +set +get +sadd +srem +smembers +time +scan +info +ping \
                     +select +cluster|slots +cluster|nodes +cluster|shards";

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_a_narrow_user_with_a_password_from_a_file_are_enough() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args(["-days", "2", "-subj", "/CN=mooring test", "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.arg("-keyout").arg(at("key.pem")).arg("-out").arg(at("cert.pem"));
    if !openssl.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return RedisServer::skipped("no openssl");
    }
    let (cert, key_file) = (text(&at("cert.pem")), text(&at("key.pem")));
    let config = format!(
        "tls-port PORT\ntls-cert-file {cert}\ntls-key-file {key_file}\ntls-ca-cert-file {cert}\n\
         tls-auth-clients no\nuser sidecar on >s3cret-in-a-file {RULES}\nuser default off"
    );
    if no_redis() {
        return;
    }
    let server = Server::start(folder.path(), &config).await.unwrap();
    std::fs::write(at("password"), "s3cret-in-a-file\n").unwrap();
    let access = Access {
        user: Some("sidecar".into()),
        password_file: Some(at("password")),
        ca_file: Some(at("cert.pem")),
        ..Access::default()
    };
    let url = format!("rediss://{}/0", server.address);
    let open_with =
        |access: &Access| -> Arc<dyn Store> { Arc::new(Redis::open(&url, access, "mooring", LONG).unwrap()) };
    let store = open_with(&access);
    let mut events = follow(&store).await;
    assert_eq!(store.claim(claim("s", "a", 0)).await.unwrap(), granted("a", 1));
    assert_eq!(store.claim(claim("s", "b", 1)).await.unwrap(), granted("b", 2));
    assert_eq!(next(&mut events).await, moved("s", "b", 2));
    assert_eq!(store.owner(key("s")).await.unwrap(), Some(owner("b", 2)));
    store.ping().await.unwrap();
    store.roster(&Told::default()).await.unwrap();
    store.set_draining(&NodeId::new("a").unwrap(), Drain { draining: true, said: 1 }).await.unwrap();
    assert!(store.list(None).await.unwrap().sessions.iter().any(|session| session.key == key("s")));
    for for_ms in [1_000, 0] {
        let request = wire::LeaseRequest { name: "here".into(), token: 1, for_ms, held: true };
        assert!(store.lease(&request).await.unwrap().granted);
    }
    let node = NodeId::new("b").unwrap();
    let (digest, seal) = ([1; 16], b"sealed".to_vec());
    let proofs = Vec::new();
    let new = Publication { node: node.clone(), epoch: 2, base: 0, digest, anonymous: false, proofs, seal };
    let owner = Owner { node: node.clone(), epoch: 2 };
    assert_eq!(store.publish(key("s"), new).await.unwrap(), Published::Stored { owner, version: 1 });
    store.has_copy(key("s"), &node, 1).await.unwrap();
    store.want_copy(key("s"), &node).await.unwrap();
    assert!(store.copy(key("s")).await.unwrap().unwrap().is_at(&node));
    assert!(store.end(key("s"), EndedBy::Operator).await.unwrap());
    for wrong in [
        Access { ca_file: None, ..access.clone() },
        Access { password_file: None, ..access.clone() },
        Access { user: Some("somebody".into()), ..access.clone() },
    ] {
        let error = open_with(&wrong).ping().await.unwrap_err();
        assert!(!format!("{error}").contains("s3cret"), "{error}");
    }
    let other = Redis::open(&url, &access, "other", LONG).unwrap();
    assert!(other.claim(claim("s", "a", 0)).await.is_err(), "the user may use one prefix only");
    let missing = Access { password_file: Some(at("nothing")), ..access };
    let error = Redis::open(&url, &missing, "mooring", LONG).unwrap_err().to_string();
    assert!(error.contains("--redis-password-file") && error.contains("nothing"), "{error}");
}
