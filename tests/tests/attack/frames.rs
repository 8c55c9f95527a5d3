//! Rubbish at the ORM cache's socket, and a worker who uses it all the while.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::orm_cache::{CacheClient, Found, key};
use rand::RngCore;
use tokio::{io::AsyncWriteExt, task::JoinHandle, time::sleep};

use crate::{attackers::Attacker, connections::finish};

/// Frames with a length that is a lie, of no kind, cut off, or full of noise.
pub async fn junk(attacker: Attacker) -> Result<()> {
    let mut noise = vec![0; rand::random_range(1..3_000)];
    rand::rng().fill_bytes(&mut noise);
    let head: &[u8] = match rand::random_range(0..5) {
        0 => &[0xff, 0xff, 0xff, 0xff, 1, 2],
        1 => &[0, 0x20, 0, 0, 1, 2],
        2 => &[0, 0, 0x0b, 0xb8, 1, 2],
        3 => &[0, 0, 0, 90, 1, 1],
        _ => &[],
    };
    let mut stream = attacker.door.open().await?;
    stream.write_all(&[head, &noise].concat()).await?;
    finish(&mut stream).await
}

/// A worker of Odoo, who puts values and finds them again.
pub struct Worker {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<usize>>,
}

impl Worker {
    pub fn start(path: std::path::PathBuf) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let until = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut client = CacheClient::connect(&path).await?;
            let mut number = 0;
            while !until.load(Ordering::Relaxed) {
                number += 1;
                client.put(key(number), 0, (1, 1), b"a value").await?;
                let found = client.get(key(number), 1_000).await?;
                ensure!(found == Found::Value(b"a value".to_vec()), "found {found:?}");
                sleep(Duration::from_millis(100)).await;
            }
            Ok(number as usize)
        });
        Self { stop, task }
    }

    /// How often it found what it had put.
    pub async fn end(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}
