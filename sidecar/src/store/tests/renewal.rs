//! Passwords and certificates are renewed while everything runs, as Kubernetes does it and otherwise.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use harness::redis_servers::Server;

use super::{redis_server::RedisServer, topologies::no_redis, *};

/// A folder of secrets as Kubernetes mounts one: everything changes at once, by one link.
struct Mounted {
    folder: TempDir,
    version: u32,
}

impl Mounted {
    fn new(files: &[(&str, &str)]) -> Self {
        let mut mounted = Self { folder: tempfile::tempdir().unwrap(), version: 0 };
        mounted.renew(files);
        for (name, _) in files {
            std::os::unix::fs::symlink(Path::new("..data").join(name), mounted.path(name)).unwrap();
        }
        mounted
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn renew(&mut self, files: &[(&str, &str)]) {
        self.version += 1;
        let folder = format!("..version_{}", self.version);
        fs::create_dir(self.path(&folder)).unwrap();
        for (name, text) in files {
            fs::write(self.path(&folder).join(name), text).unwrap();
        }
        std::os::unix::fs::symlink(&folder, self.path("..new")).unwrap();
        fs::rename(self.path("..new"), self.path("..data")).unwrap();
    }
}

/// Asks until something holds; what was said last.
async fn until(store: &dyn Store, holds: impl Fn(&Result<(), StoreError>) -> bool) -> String {
    let started = Instant::now();
    loop {
        let answer = store.ping().await;
        if holds(&answer) {
            return answer.err().map(|error| error.to_string()).unwrap_or_default();
        }
        assert!(started.elapsed() < PATIENCE * 2, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn keeps_working(store: &dyn Store, time: Duration) {
    let started = Instant::now();
    while started.elapsed() < time {
        store.ping().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Connections of the user in Redis.
async fn connected(server: &RedisServer) -> Vec<String> {
    let list: String = server.run("CLIENT LIST").await;
    let ours = list.lines().filter(|line| line.contains("user=sidecar"));
    ours.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_renewed_password_is_used_whoever_knows_of_it_first() {
    let Some(server) = RedisServer::start().await else { return };
    let set = async |rules: &str| server.run::<()>(&format!("ACL SETUSER sidecar {rules}")).await;
    set("on >the-first ~* &* +@all").await;
    let mut mounted = Mounted::new(&[("password", "the-first\n")]);
    let access = Access {
        user: Some("sidecar".into()),
        password_file: Some(mounted.path("password")),
        ..Access::default()
    };
    let store: Arc<dyn Store> = Arc::new(Redis::open(&server.url(), &access, "mooring", LONG).unwrap());
    store.ping().await.unwrap();
    let first = connected(&server).await;
    assert_eq!(first.len(), 1, "{first:?}");

    // The sidecar first: what it has goes on, until Redis has been told.
    mounted.renew(&[("password", "the-second\n")]);
    keeps_working(&*store, Duration::from_secs(3)).await;
    assert_eq!(connected(&server).await, first);
    set(">the-second <the-first").await;
    let started = Instant::now();
    while connected(&server).await.iter().any(|id| first.contains(id)) {
        store.ping().await.unwrap();
        assert!(started.elapsed() < PATIENCE, "it does not connect anew");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Redis first, and it ends all connections.
    set("resetpass >the-third").await;
    server.run::<()>("CLIENT KILL USER sidecar").await;
    let said =
        until(&*store, |answer| answer.as_ref().is_err_and(|it| it.to_string().contains("assword"))).await;
    assert!(!said.contains("the-second"), "{said}");
    // A moment later it is still said why.
    let said = store.ping().await.unwrap_err().to_string();
    assert!(said.contains("assword"), "{said}");
    mounted.renew(&[("password", "the-third\n")]);
    until(&*store, Result::is_ok).await;

    // What is put there is no password: it goes on with what it has.
    mounted.renew(&[("password", "two\nlines\n")]);
    keeps_working(&*store, Duration::from_millis(2_500)).await;
    server.run::<()>("CLIENT KILL USER sidecar").await;
    let said = until(&*store, Result::is_err).await;
    assert!(!said.contains("two"), "{said}");
    let said =
        until(&*store, |answer| answer.as_ref().is_err_and(|it| it.to_string().contains("several"))).await;
    assert!(said.contains("--redis-password-file"), "{said}");
    mounted.renew(&[("password", "\u{feff}the-third\r\n")]);
    until(&*store, Result::is_ok).await;
}

fn certificate(folder: &Path, name: &str) -> Option<(String, String)> {
    let at = |suffix: &str| folder.join(format!("{name}.{suffix}"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args(["-days", "2", "-subj", &format!("/CN={name}"), "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.arg("-keyout").arg(at("key")).arg("-out").arg(at("pem"));
    let made = openssl.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    let text = |suffix: &str| at(suffix).to_str().unwrap().to_owned();
    made.then(|| (text("pem"), text("key")))
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_are_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let (Some(old), Some(new)) = (certificate(folder.path(), "old"), certificate(folder.path(), "new"))
    else {
        return RedisServer::skipped("no openssl");
    };
    if no_redis() {
        return;
    }
    let config = |(certificate, key): &(String, String)| {
        format!(
            "tls-port PORT\ntls-cert-file {certificate}\ntls-key-file {key}\ntls-ca-cert-file {certificate}\n\
             tls-auth-clients no"
        )
    };
    let read = |(certificate, _): &(String, String)| fs::read_to_string(certificate).unwrap();
    let mut mounted = Mounted::new(&[("ca.crt", &read(&old))]);
    let server = Server::start(folder.path(), &config(&old)).await.unwrap();
    let address = server.address;
    let access = Access { ca_file: Some(mounted.path("ca.crt")), ..Access::default() };
    let url = format!("rediss://{address}/0");
    let store: Arc<dyn Store> = Arc::new(Redis::open(&url, &access, "mooring", LONG).unwrap());
    store.ping().await.unwrap();
    server.kill();
    let _server = Server::start_at(address, folder.path(), &config(&new)).await.unwrap();
    let said =
        until(&*store, |answer| answer.as_ref().is_err_and(|it| it.to_string().contains("certificate")))
            .await;
    assert!(said.contains("the store cannot be reached"), "{said}");
    mounted.renew(&[("ca.crt", &read(&new))]);
    until(&*store, Result::is_ok).await;
}
