//! What sidecars share of the ORM cache: values that expire, leases of who computes one, and news of what
//! is of no use any more. What the values are, and whether they can be trusted, is not known here.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use redis::{RedisResult, Script, Value, streams::StreamId};
use tokio::sync::mpsc;

use super::{
    Access, InvalidUrl,
    follow::{self, Entry},
    keys::{Keys, Stream},
    link::Link,
    scripts::ANNOUNCE,
};

/// The value, or whether the caller has the lease to compute it.
static FIND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local value = redis.call('GET', KEYS[1])
         if value then return value end
         if redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[1]) then return 1 end
         return 0",
    )
});

/// Sets the value, and ends the caller's lease.
static PUT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
         if redis.call('GET', KEYS[2]) == ARGV[3] then redis.call('DEL', KEYS[2]) end",
    )
});

/// Ends the caller's lease. Another may have it by now, whom nobody is to compute beside.
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end")
});

/// What was found under a key.
pub(crate) enum Found {
    Value(Vec<u8>),
    /// Nothing, and the caller has the lease.
    Leased,
    /// Nothing, and another sidecar has the lease.
    Elsewhere,
}

/// What sidecars tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ValueEvent {
    /// What a family has of other generations is of no use: both in hexadecimal.
    Stale { family: String, generation: String },
    /// Some may have been missed, which costs memory for a while.
    Lost,
}

impl Entry for ValueEvent {
    const LOST: Self = Self::Lost;
    const FOLLOWING: &str = "following the ORM cache in Redis";

    fn stream(keys: &Keys) -> &Stream {
        &keys.stale
    }

    fn read(entry: &StreamId) -> Option<Self> {
        Some(Self::Stale { family: entry.get("family")?, generation: entry.get("generation")? })
    }
}

/// Values in Redis. Its connection is its own, so that a session's look-up waits for no value.
pub(crate) struct Values {
    link: Arc<Link>,
    keys: Keys,
}

impl Values {
    /// Connects when it is first needed.
    ///
    /// # Errors
    /// If the URL is none, or a file beside it cannot be read.
    pub(crate) fn open(url: &str, access: &Access, prefix: &str) -> Result<Self, InvalidUrl> {
        Ok(Self { link: Link::new(url, access)?, keys: Keys::new(prefix) })
    }

    /// The value of a key; if there is none, takes its lease in the name of a `token`.
    ///
    /// # Errors
    /// As Redis answers; likewise of the next.
    pub(crate) async fn find(&self, key: &str, token: &str, lease: Duration) -> RedisResult<Found> {
        let mut script = FIND.key(self.keys.value(key));
        script.key(self.keys.value_lease(key)).arg(lease.as_millis() as u64).arg(token);
        let found = self.link.run(async |connection| script.invoke_async(connection).await).await?;
        Ok(match found {
            Value::BulkString(value) => Found::Value(value),
            Value::Int(1) => Found::Leased,
            _ => Found::Elsewhere,
        })
    }

    /// Keeps a value for a while, and ends the lease that `token` has.
    pub(crate) async fn put(
        &self,
        key: &str,
        token: &str,
        value: &[u8],
        lifetime: Duration,
    ) -> RedisResult<()> {
        let mut script = PUT.key(self.keys.value(key));
        script.key(self.keys.value_lease(key)).arg(value).arg(lifetime.as_millis() as u64).arg(token);
        self.link.run(async |connection| script.invoke_async(connection).await).await
    }

    /// Ends the lease that `token` has without a value.
    pub(crate) async fn release(&self, key: &str, token: &str) -> RedisResult<()> {
        let mut script = RELEASE.key(self.keys.value_lease(key));
        script.arg(token);
        self.link.run(async |connection| script.invoke_async(connection).await).await
    }

    /// Removes a value.
    pub(crate) async fn remove(&self, key: &str) -> RedisResult<()> {
        let mut delete = redis::cmd("DEL");
        delete.arg(self.keys.value(key));
        self.link.run(async |connection| delete.query_async(connection).await).await
    }

    /// Tells the others what is of no use any more.
    pub(crate) async fn tell_stale(&self, family: &str, generation: &str) -> RedisResult<()> {
        let mut script = ANNOUNCE.key(&self.keys.stale.entries);
        script.key(&self.keys.stale.told);
        script.arg("family").arg(family).arg("generation").arg(generation);
        self.link.run(async |connection| script.invoke_async(connection).await).await
    }

    /// Tells what others say from now on, until the receiver is gone.
    pub(crate) async fn follow(&self, events: mpsc::Sender<ValueEvent>) {
        follow::follow(&self.link, &self.keys, &events).await;
    }
}
