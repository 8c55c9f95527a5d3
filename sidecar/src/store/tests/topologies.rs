//! Redis as people run it: a cluster, Sentinels, TLS, and a user who may do no more than is needed.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{redis_server::RedisServer, *};

/// A redis-server with options of its own. Dropping it kills it.
pub(super) struct Server {
    child: Child,
    pub(super) port: u16,
}

impl Server {
    /// Starts one with a configuration of its own, in which PORT is its port; none if there is no such
    /// program, which is said aloud.
    async fn start(folder: &Path, config: &str) -> Option<Self> {
        let port = free_port();
        let own = folder.join(port.to_string());
        std::fs::create_dir_all(&own).unwrap();
        let listen = if config.contains("PORT") { "port 0" } else { "port PORT" };
        let text = format!("bind 127.0.0.1\nsave \"\"\nappendonly no\n{listen}\n{config}\n");
        let file = own.join("redis.conf");
        std::fs::write(&file, text.replace("PORT", &port.to_string())).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(&file).arg("--dir").arg(&own);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            RedisServer::skipped("no redis-server");
            return None;
        };
        let mut server = Self { child, port };
        for _ in 0..1_000 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(server);
            }
            assert_eq!(server.child.try_wait().unwrap(), None, "redis-server ended");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("redis-server does not listen");
    }

    /// Runs one command.
    async fn run<T: ::redis::FromRedisValue>(&self, command: &str) -> T {
        let client = ::redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut words = command.split(' ');
        let mut command = ::redis::cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>()).query_async(&mut connection).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Below 55,536: a cluster's bus listens 10,000 above.
fn free_port() -> u16 {
    loop {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port = port % 40_000 + 10_000;
        if [port, port + 10_000].iter().all(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        {
            return port;
        }
    }
}

/// Three servers that share all slots.
pub(super) struct Cluster {
    servers: Vec<Server>,
    _folder: TempDir,
}

impl Cluster {
    pub(super) async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut servers = Vec::new();
        for _ in 0..3 {
            let config = "cluster-enabled yes\ncluster-node-timeout 2000";
            servers.push(Server::start(folder.path(), config).await?);
        }
        for (server, range) in servers.iter().zip(["0 5460", "5461 10922", "10923 16383"]) {
            server.run::<()>(&format!("CLUSTER ADDSLOTSRANGE {range}")).await;
            server.run::<()>(&format!("CLUSTER MEET 127.0.0.1 {}", servers[0].port)).await;
        }
        let cluster = Self { servers, _folder: folder };
        for server in &cluster.servers {
            while !server.run::<String>("CLUSTER INFO").await.contains("cluster_state:ok") {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        // A node that has just met another may not know of the third.
        tokio::time::sleep(Duration::from_millis(500)).await;
        Some(cluster)
    }

    pub(super) fn open(&self, lifetimes: Lifetimes) -> Arc<dyn Store> {
        let hosts: Vec<_> = self.servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        let url = format!("redis+cluster://{}", hosts.join(","));
        Arc::new(Redis::open(&url, &Access::default(), "mooring", lifetimes).unwrap())
    }
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
    let Some(cluster) = Cluster::start().await else { return };
    let store = cluster.open(LONG);
    let mut events = follow(&store).await;
    for number in 0..300 {
        store.claim(claim(&format!("session {number}"), "a", 0)).await.unwrap();
    }
    for server in &cluster.servers {
        let keys: usize = server.run("DBSIZE").await;
        assert!(keys > 50, "a server has {keys} of 300 sessions");
    }
    // One session's slot goes to another server, as `redis-cli --cluster reshard` does it.
    let name = format!("mooring:owner:{{{}}}", key("session 7"));
    let slot: u16 = cluster.servers[0].run(&format!("CLUSTER KEYSLOT {name}")).await;
    let from = usize::from(slot > 5_460) + usize::from(slot > 10_922);
    let to = (from + 1) % 3;
    let mut ids = Vec::new();
    for server in &cluster.servers {
        ids.push(server.run::<String>("CLUSTER MYID").await);
    }
    cluster.servers[to].run::<()>(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", ids[from])).await;
    cluster.servers[from].run::<()>(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", ids[to])).await;
    let moved_to = format!("MIGRATE 127.0.0.1 {} {name} 0 2000", cluster.servers[to].port);
    cluster.servers[from].run::<()>(&moved_to).await;
    assert_eq!(store.owner(key("session 7")).await.unwrap(), Some(owner("a", 1)), "while it migrates");
    for server in &cluster.servers {
        server.run::<()>(&format!("CLUSTER SETSLOT {slot} NODE {}", ids[to])).await;
    }
    assert_eq!(store.claim(claim("session 7", "b", 1)).await.unwrap(), granted("b", 2));
    assert_eq!(next(&mut events).await, moved("session 7", "b", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_a_server_serves_the_other_sessions() {
    let Some(mut cluster) = Cluster::start().await else { return };
    for server in &cluster.servers {
        server.run::<()>("CONFIG SET cluster-require-full-coverage no").await;
    }
    let store = cluster.open(LONG);
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
    let folder = tempfile::tempdir().unwrap();
    let Some(master) = Server::start(folder.path(), "").await else { return };
    let replica_of = format!("replicaof 127.0.0.1 {}", master.port);
    let Some(replica) = Server::start(folder.path(), &replica_of).await else { return };
    let config = folder.path().join("sentinel.conf");
    let text = format!(
        "sentinel monitor odoo 127.0.0.1 {} 1\nsentinel down-after-milliseconds odoo 500\n\
         sentinel failover-timeout odoo 2000\n",
        master.port
    );
    std::fs::write(&config, text).unwrap();
    let sentinel = start_sentinel(&config).await;

    let url = format!("redis+sentinel://127.0.0.1:{}/odoo", sentinel.port);
    let store: Arc<dyn Store> = Arc::new(Redis::open(&url, &Access::default(), "mooring", LONG).unwrap());
    let mut events = follow(&store).await;
    store.claim(claim("s", "a", 0)).await.unwrap();
    in_time("the replica has it", async || (replica.run::<usize>("DBSIZE").await > 1).then_some(())).await;
    in_time("the sentinel knows the replica", async || {
        let info: String = sentinel.run("INFO sentinel").await;
        info.contains("slaves=1").then_some(())
    })
    .await;

    let began = std::time::Instant::now();
    drop(master);
    let found = in_time("the replica serves", async || store.owner(key("s")).await.ok()).await;
    println!("Sentinel failover: {:.1?} without an answer", began.elapsed());
    assert_eq!(found, Some(owner("a", 1)));
    assert_eq!(next(&mut events).await, Event::Lost, "a replica may be behind");
    assert_eq!(store.claim(claim("s", "b", 1)).await.unwrap(), granted("b", 2));
    assert_eq!(next(&mut events).await, moved("s", "b", 2));
}

async fn start_sentinel(config: &PathBuf) -> Server {
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.arg(config).args(["--sentinel", "--port", &port.to_string(), "--bind", "127.0.0.1"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server { child: command.spawn().unwrap(), port };
    in_time("the sentinel listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok())
        .await;
    server
}

/// The rules that the documentation gives a user of Redis.
const RULES: &str = "~mooring:* &* -@all +evalsha +eval +script|load +hmget +hset +hget +hgetall +hdel +pexpire \
                     +pttl +incr +xadd +xread +xrevrange +set +get +sadd +srem +smembers +time +scan +info +ping \
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
    let Some(server) = Server::start(folder.path(), &config).await else { return };
    std::fs::write(at("password"), "s3cret-in-a-file\n").unwrap();
    let access = Access {
        user: Some("sidecar".into()),
        password_file: Some(at("password")),
        ca_file: Some(at("cert.pem")),
    };
    let url = format!("rediss://127.0.0.1:{}/0", server.port);
    let open =
        |access: &Access| -> Arc<dyn Store> { Arc::new(Redis::open(&url, access, "mooring", LONG).unwrap()) };
    let store = open(&access);
    let mut events = follow(&store).await;
    assert_eq!(store.claim(claim("s", "a", 0)).await.unwrap(), granted("a", 1));
    assert_eq!(store.claim(claim("s", "b", 1)).await.unwrap(), granted("b", 2));
    assert_eq!(next(&mut events).await, moved("s", "b", 2));
    assert_eq!(store.owner(key("s")).await.unwrap(), Some(owner("b", 2)));
    store.ping().await.unwrap();
    store.roster(&HashMap::new()).await.unwrap();
    store.set_draining(&NodeId::new("a").unwrap(), true).await.unwrap();
    assert_eq!(store.owned(&NodeId::new("b").unwrap(), None).await.unwrap().sessions.len(), 1);
    for wrong in [
        Access { ca_file: None, ..access.clone() },
        Access { password_file: None, ..access.clone() },
        Access { user: Some("somebody".into()), ..access.clone() },
    ] {
        let error = open(&wrong).ping().await.unwrap_err();
        assert!(!format!("{error}").contains("s3cret"), "{error}");
    }
    let other = Redis::open(&url, &access, "other", LONG).unwrap();
    assert!(other.claim(claim("s", "a", 0)).await.is_err(), "the user may use one prefix only");
    let missing = Access { password_file: Some(at("nothing")), ..access };
    let error = Redis::open(&url, &missing, "mooring", LONG).unwrap_err().to_string();
    assert!(error.contains("--redis-password-file") && error.contains("nothing"), "{error}");
}
