//! Sidecars with an ORM cache, and a client of its socket that was written from docs/orm-cache.md.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::{
    browser,
    process::{Process, free_port},
    program,
};

/// A secret that sidecars share.
pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A sidecar with an ORM cache.
pub struct CacheSidecar {
    /// Its cache's socket.
    pub socket: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    /// The program.
    pub process: Process,
}

impl CacheSidecar {
    /// Starts one in a folder of its own; on a Redis, with a secret, or with a store of its own.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(folder: &Path, redis: Option<(SocketAddr, &str)>, more: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (socket, address) = (folder.join("cache.sock"), ([127, 0, 0, 1], free_port()?).into());
        let mut command = Command::new(program("mooring"));
        command.args(["serve", "--listen", &format!("{address}"), "--node", "odoo-1=127.0.0.1:1"]);
        command.arg("--state-dir").arg(folder.join("state")).arg("--cache-socket").arg(&socket).args(more);
        if let Some((redis, secret)) = redis {
            let file = folder.join("secret");
            std::fs::write(&file, secret)?;
            command.args(["--store", &format!("redis://{redis}/0"), "--secret-file"]).arg(file);
        }
        let mut process = Process::start("a sidecar", command, &folder.join("sidecar.log"))?;
        let listens = async || {
            browser::get(address, "/healthz").await.ok()?;
            UnixStream::connect(&socket).await.ok()
        };
        process.wait(Duration::from_secs(10), listens).await?;
        Ok(Self { socket, address, process })
    }

    /// A connection to its cache.
    ///
    /// # Errors
    /// If there is none.
    pub async fn connect(&self) -> Result<CacheClient> {
        CacheClient::connect(&self.socket).await
    }

    /// What `mooring cache --json` prints.
    ///
    /// # Errors
    /// If it fails.
    pub fn report(&self) -> Result<Value> {
        let mut command = Command::new(program("mooring"));
        command.args(["cache", "--json", "--sidecar", &self.address.to_string()]);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// What the cache answered to a look-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A value.
    Value(Vec<u8>),
    /// A lease to compute it.
    Lease(u64),
    /// Nothing: compute it.
    Miss,
}

/// A connection to a cache.
pub struct CacheClient(UnixStream);

/// A key.
pub fn key(number: u64) -> [u8; 32] {
    let mut key = [0x5a; 32];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key
}

const LABEL: &[u8] = b"\x06assets\x13some.module:A.value";

impl CacheClient {
    /// Connects.
    ///
    /// # Errors
    /// If nobody listens.
    pub async fn connect(socket: &Path) -> Result<Self> {
        Ok(Self(UnixStream::connect(socket).await?))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// If nobody takes them.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write_all(bytes).await?)
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// If nobody takes it.
    pub async fn frame(&mut self, kind: u8, body: &[&[u8]]) -> Result<()> {
        let body = body.concat();
        let length = u32::try_from(body.len() + 2)?.to_be_bytes();
        self.send(&[&length, &[1, kind][..], &body].concat()).await
    }

    /// The kind and the body of the next frame.
    ///
    /// # Errors
    /// If there is none.
    pub async fn answer(&mut self) -> Result<(u8, Vec<u8>)> {
        let length = self.0.read_u32().await?;
        ensure!((2..=2_200_000).contains(&length), "a frame of {length} bytes");
        let mut frame = vec![0; length as usize];
        self.0.read_exact(&mut frame).await?;
        ensure!(frame[0] == 1, "version {}", frame[0]);
        Ok((frame[1], frame.split_off(2)))
    }

    /// Looks a value up, and waits for who computes it.
    ///
    /// # Errors
    /// If there is no answer; likewise of the next.
    pub async fn get(&mut self, key: [u8; 32], wait_ms: u32) -> Result<Found> {
        self.frame(1, &[&key, &wait_ms.to_be_bytes(), LABEL]).await?;
        loop {
            return Ok(match self.answer().await? {
                (0x81, body) => Found::Value(body.get(8..).context("no cost")?.to_vec()),
                (0x82, body) => Found::Lease(u64::from_be_bytes(body.as_slice().try_into()?)),
                (0x83, _) => continue,
                (0x84, _) => Found::Miss,
                (kind, body) => bail!("an answer of kind {kind:#x}: {}", String::from_utf8_lossy(&body)),
            });
        }
    }

    /// Publishes a value of a family and generation, that took 100 ms to compute.
    pub async fn put(&mut self, key: [u8; 32], lease: u64, of: (u8, u8), value: &[u8]) -> Result<()> {
        let head = [lease.to_be_bytes(), 100_000_u64.to_be_bytes()].concat();
        self.frame(2, &[&key, &head, &[of.0; 16], &[of.1; 16], LABEL, value]).await?;
        self.done().await
    }

    /// Gives a lease back.
    pub async fn release(&mut self, key: [u8; 32], lease: u64) -> Result<()> {
        self.frame(3, &[&key, &lease.to_be_bytes()]).await?;
        self.done().await
    }

    /// Says which generation of a family is of use; there is no answer.
    pub async fn invalidate(&mut self, of: (u8, u8)) -> Result<()> {
        self.frame(4, &[&[of.0; 16], &[of.1; 16]]).await
    }

    async fn done(&mut self) -> Result<()> {
        let (kind, body) = self.answer().await?;
        ensure!(kind == 0x85, "an answer of kind {kind:#x}: {}", String::from_utf8_lossy(&body));
        Ok(())
    }
}
