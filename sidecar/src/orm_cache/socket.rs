//! The cache's socket: who asks, within bounds.

use std::{sync::Arc, time::Duration};

use axum::body::Bytes;
use tokio::{
    io::BufReader,
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use super::{
    Answer, OrmCache,
    leases::Lease,
    wire::{self, Get, Reply, Request, WireError},
};
use crate::lasting::Lasting;

/// Leases of one connection: values that need each other while they are computed.
const MOST_LEASES: usize = 64;
/// How long a frame that has begun may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often who waits is told that the sidecar is there.
const TELL: Duration = Duration::from_millis(5);
/// Frames above this take a place, and how many of them may be on their way at once.
const LONG: usize = 64 << 10;
const MOST_LONG: usize = 32;

/// Answers so many who connect at once, for as long as the process lives.
pub(crate) async fn serve(listener: UnixListener, cache: Arc<OrmCache>, most: usize) {
    let connections = Arc::new(Semaphore::new(most));
    let accepting = Lasting::new("--cache-socket");
    let long = Arc::new(Semaphore::new(MOST_LONG));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => {
                accepting.works();
                stream
            }
            Err(error) => {
                // As when there are no file descriptors left: that may pass.
                accepting.failed(error);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&connections).try_acquire_owned() else {
            cache.stats.metrics.refused.inc();
            continue;
        };
        let (cache, long) = (Arc::clone(&cache), Arc::clone(&long));
        tokio::spawn(async move {
            let mut connection = Connection::new(stream, cache, long);
            if let Err(error) = connection.run().await
                && !matches!(error, WireError::Io(_))
            {
                tracing::debug!("a connection to the cache's socket ends: {error}");
                connection.cache.stats.metrics.invalid.inc();
                let _ = connection.answer(&Reply::Error(error.to_string())).await;
            }
            drop(place);
        });
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for lease in &self.leases {
            self.cache.release(lease.key, lease.id);
        }
    }
}

struct Connection {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    cache: Arc<OrmCache>,
    long: Arc<Semaphore>,
    /// What it computes. They end with it.
    leases: Vec<Lease>,
}

impl Connection {
    fn new(stream: UnixStream, cache: Arc<OrmCache>, long: Arc<Semaphore>) -> Self {
        let (read, write) = stream.into_split();
        Self { read: BufReader::new(read), write, cache, long, leases: Vec::new() }
    }

    /// Answers one question after another until it ends, by itself or for an error.
    async fn run(&mut self) -> Result<(), WireError> {
        while let Some(length) = wire::read_length(&mut self.read, PATIENCE).await? {
            let long = Arc::clone(&self.long);
            let place = if length > LONG { long.acquire().await.ok() } else { None };
            let frame = wire::read_frame(&mut self.read, length, PATIENCE).await?;
            self.handle(frame).await?;
            drop(place);
        }
        Ok(())
    }

    async fn handle(&mut self, frame: Bytes) -> Result<(), WireError> {
        let reply = match Request::parse(frame)? {
            Request::Get(get) => self.get(&get).await?,
            Request::Put(put) => {
                let lease = put.lease;
                self.cache.put(put);
                self.leases.retain(|held| held.id != lease);
                Reply::Done
            }
            Request::Release { key, lease } => {
                self.cache.release(key, lease);
                self.leases.retain(|held| held.id != lease);
                Reply::Done
            }
            Request::Invalidate { family, generation } => {
                self.cache.invalidate(family, generation);
                return Ok(());
            }
            Request::Stats => Reply::Stats(serde_json::to_vec(&self.cache.report()).unwrap_or_default()),
        };
        Ok(self.answer(&reply).await?)
    }

    /// Looks a value up; tells who must wait that it must.
    async fn get(&mut self, get: &Get) -> std::io::Result<Reply> {
        let cache = Arc::clone(&self.cache);
        let looking = cache.get(get);
        tokio::pin!(looking);
        // Not now: a tick that is due at once takes a millisecond all the same.
        let mut ticks = interval_at(Instant::now() + TELL, TELL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let answer = loop {
            tokio::select! {
                answer = &mut looking => break answer,
                // Whoever went away is found out by this.
                _ = ticks.tick() => self.answer(&Reply::Wait).await?,
            }
        };
        Ok(match answer {
            Answer::Value(entry) => Reply::Value { cost_us: entry.cost_us, value: entry.value },
            Answer::Lease(lease) if self.leases.len() < MOST_LEASES => {
                let id = lease.id;
                self.leases.push(lease);
                Reply::Lease(id)
            }
            Answer::Lease(lease) => {
                self.cache.release(lease.key, lease.id);
                Reply::Miss
            }
            Answer::Miss => Reply::Miss,
        })
    }

    async fn answer(&mut self, reply: &Reply) -> std::io::Result<()> {
        timeout(PATIENCE, reply.write(&mut self.write)).await.map_err(|_| std::io::ErrorKind::TimedOut)?
    }
}
