//! A Redis server of a test's own.

use std::{
    io::Write,
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use tokio::net::TcpStream;

use super::*;

/// A running redis-server on a loopback port, without persistence. Dropping it kills it.
pub(super) struct RedisServer {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl RedisServer {
    /// Starts one; none if the program is not there, which is said aloud.
    pub(super) async fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        match run(port, &folder).await {
            Ok(child) => Some(Self { child, port, folder }),
            Err(error) => {
                Self::skipped(&format!("no redis-server ({error})"));
                None
            }
        }
    }

    /// Says aloud why a test is not run.
    pub(super) fn skipped(why: &str) {
        // Not eprintln!, which is not seen of a test that passes.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// The store as a sidecar opens it.
    pub(super) fn open(&self, prefix: &str, lifetimes: Lifetimes) -> Arc<dyn Store> {
        Arc::new(Redis::open(&self.url(), &Access::default(), prefix, lifetimes).unwrap())
    }

    /// Runs one command, such as `SET key value`.
    pub(super) async fn run<T: ::redis::FromRedisValue>(&self, command: &str) -> T {
        let client = ::redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut words = command.split(' ');
        let mut command = ::redis::cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>()).query_async(&mut connection).await.unwrap()
    }

    /// Sets a field of a hash to a text with spaces.
    pub(super) async fn set_field(&self, key: &str, field: &str, text: &str) {
        let client = ::redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        ::redis::cmd("HSET").arg(&[key, field, text]).exec_async(&mut connection).await.unwrap();
    }

    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again where it was, empty.
    pub(super) async fn start_again(&mut self) {
        self.child = run(self.port, &self.folder).await.unwrap();
    }

    /// Sends it a signal, such as `STOP`.
    pub(super) fn signal(&self, signal: &str) {
        let mut kill = Command::new("kill");
        assert!(kill.args(["-s", signal, &self.child.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn run(port: u16, folder: &TempDir) -> std::io::Result<Child> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    for _ in 0..1_000 {
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return Ok(child);
        }
        assert_eq!(child.try_wait()?, None, "redis-server ended");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _ = child.kill();
    panic!("redis-server does not listen");
}
