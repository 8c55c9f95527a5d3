//! The directory in Redis, for sidecars on several hosts.

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use affinity::{
    NodeId, SessionKey,
    wire::{Change, Claim, ClaimReply, Owner},
};
use async_trait::async_trait;
use redis::{
    AsyncCommands, Client, ErrorKind, RedisError, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
    streams::{StreamReadOptions, StreamReadReply},
};
use tokio::sync::mpsc;

use super::{Event, Store, StoreError, prolong_after};

/// Claims a session, as `decide` of this module's parent does.
///
/// KEYS 1: the session's hash of `node` and `epoch`. ARGV 1: the node; 2: the epoch it expects;
/// 3: the record's lifetime in milliseconds. Returns whether it is granted, the owner, its epoch, and
/// whether the owner is another than before.
static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
local node, epoch = unpack(redis.call('HMGET', KEYS[1], 'node', 'epoch'))
if node == ARGV[1] then
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    return {1, node, epoch, 0}
end
if node and epoch ~= ARGV[2] then
    return {0, node, epoch, 0}
end
epoch = string.format('%.0f', (node and epoch or ARGV[2]) + 1)
redis.call('HSET', KEYS[1], 'node', ARGV[1], 'epoch', epoch)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {1, ARGV[1], epoch, epoch == '1' and 0 or 1}
"#,
    )
});

/// Reads an owner, and prolongs its record if that was not done for a while.
///
/// KEYS 1: the session's hash. ARGV 1: the lifetime in milliseconds; 2: the time to live under which
/// to prolong. Returns the owner and its epoch, or nils.
static OWNER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
local owner = redis.call('HMGET', KEYS[1], 'node', 'epoch')
if owner[1] and redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return owner
"#,
    )
});

/// Changes kept in the stream.
const CHANGES: usize = 10_000;
/// How long one read of the stream waits.
const READ_WAIT: Duration = Duration::from_secs(5);
/// How long to wait before following again after a failure; half of it is random.
const RETRY: Duration = Duration::from_millis(500);

/// A Redis server.
pub(crate) struct Redis {
    client: Client,
    connection: ConnectionManager,
    prefix: String,
    lifetime: Duration,
}

/// Why a text is no URL of a Redis server. It never shows the text, which may hold a password.
#[derive(Debug, thiserror::Error)]
#[error("expected embedded, or redis://HOST:PORT/DB ({0})")]
pub(crate) struct InvalidUrl(String);

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The client's own form shows the password.
        f.debug_struct("Redis").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Redis {
    /// A store that connects when it is first needed.
    ///
    /// # Errors
    /// If the URL is none.
    pub(crate) fn open(url: &str, prefix: &str, lifetime: Duration) -> Result<Self, InvalidUrl> {
        if !url.starts_with("redis://") {
            return Err(InvalidUrl("it is neither".into()));
        }
        let client = Client::open(url).map_err(invalid_url)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(Duration::from_secs(1)))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_secs(1));
        let connection =
            ConnectionManager::new_lazy_with_config(client.clone(), config).map_err(invalid_url)?;
        Ok(Self { client, connection, prefix: prefix.to_owned(), lifetime })
    }

    fn owner_key(&self, key: SessionKey) -> String {
        format!("{}:owner:{key}", self.prefix)
    }

    fn changes_key(&self) -> String {
        format!("{}:changes", self.prefix)
    }

    fn lifetime_ms(&self) -> u64 {
        self.lifetime.as_millis() as u64
    }

    /// Tells other sidecars of a change.
    async fn announce(&self, key: SessionKey, owner: &Owner) -> Result<(), StoreError> {
        redis::cmd("XADD")
            .arg(self.changes_key())
            .arg("MAXLEN")
            .arg("~")
            .arg(CHANGES)
            .arg("*")
            .arg("key")
            .arg(key.to_string())
            .arg("node")
            .arg(owner.node.as_str())
            .arg("epoch")
            .arg(owner.epoch)
            .exec_async(&mut self.connection.clone())
            .await
            .map_err(failed)
    }

    /// Tells changes until something fails.
    async fn follow_once(&self, events: &mpsc::Sender<Event>) -> Result<(), RedisError> {
        let mut connection = self
            .client
            .get_multiplexed_async_connection_with_config(
                &redis::AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(Duration::from_secs(1)))
                    .set_response_timeout(Some(READ_WAIT + Duration::from_secs(2))),
            )
            .await?;
        let key = self.changes_key();
        // What came before this connection may have been missed.
        let mut position = last_id(&mut connection, &key).await?;
        if events.send(Event::Lost).await.is_err() {
            return Ok(());
        }
        let options = StreamReadOptions::default().block(READ_WAIT.as_millis() as usize).count(1_000);
        while !events.is_closed() {
            let reply: Option<StreamReadReply> =
                connection.xread_options(&[&key], &[&position], &options).await?;
            for entry in reply.into_iter().flat_map(|reply| reply.keys).flat_map(|stream| stream.ids) {
                let event = read_change(&entry).map_or(Event::Lost, Event::Changed);
                position = entry.id;
                if events.send(event).await.is_err() {
                    return Ok(());
                }
            }
            // A stream that ends before our position is another one: the server lost its memory.
            if stream_position(&last_id(&mut connection, &key).await?) < stream_position(&position) {
                return Err((ErrorKind::Client, "the stream of changes began anew").into());
            }
        }
        Ok(())
    }
}

/// The id of the stream's last entry, or the one before all if there is none.
async fn last_id(connection: &mut impl AsyncCommands, key: &str) -> Result<String, RedisError> {
    let last: redis::streams::StreamRangeReply = connection.xrevrange_count(key, "+", "-", 1).await?;
    Ok(last.ids.into_iter().next().map_or_else(|| "0-0".to_owned(), |entry| entry.id))
}

fn stream_position(id: &str) -> Option<(u64, u64)> {
    let (time, sequence) = id.split_once('-')?;
    Some((time.parse().ok()?, sequence.parse().ok()?))
}

fn read_change(entry: &redis::streams::StreamId) -> Option<Change> {
    let key = entry.get::<String>("key")?.parse().ok()?;
    let node = NodeId::new(entry.get::<String>("node")?).ok()?;
    Some(Change { key, owner: Some(Owner { node, epoch: entry.get("epoch")? }) })
}

fn invalid_url(error: RedisError) -> InvalidUrl {
    InvalidUrl(error.to_string())
}

fn failed(error: RedisError) -> StoreError {
    // The error's own text names no password; the URL, which does, is not in it.
    let text = error.to_string();
    match error.kind() {
        ErrorKind::UnexpectedReturnType | ErrorKind::Parse => StoreError::Foreign(text),
        // Before Redis 7 the error's code is the script's.
        _ if text.contains("WRONGTYPE") => StoreError::Foreign(text),
        _ => StoreError::Unreachable(text),
    }
}

fn owner(node: String, epoch: u64) -> Result<Owner, StoreError> {
    let node = NodeId::new(node).map_err(|error| StoreError::Foreign(error.to_string()))?;
    Ok(Owner { node, epoch })
}

#[async_trait]
impl Store for Redis {
    async fn owner(&self, key: SessionKey) -> Result<Option<Owner>, StoreError> {
        let found: (Option<String>, Option<u64>) = OWNER
            .key(self.owner_key(key))
            .arg(self.lifetime_ms())
            .arg(self.lifetime.saturating_sub(prolong_after(self.lifetime)).as_millis() as u64)
            .invoke_async(&mut self.connection.clone())
            .await
            .map_err(failed)?;
        match found {
            (Some(node), Some(epoch)) => owner(node, epoch).map(Some),
            (Some(node), None) => Err(StoreError::Foreign(format!("{node} without an epoch"))),
            (None, _) => Ok(None),
        }
    }

    async fn claim(&self, claim: Claim) -> Result<ClaimReply, StoreError> {
        let (granted, node, epoch, moved): (bool, String, u64, bool) = CLAIM
            .key(self.owner_key(claim.key))
            .arg(claim.node.as_str())
            .arg(claim.expect)
            .arg(self.lifetime_ms())
            .invoke_async(&mut self.connection.clone())
            .await
            .map_err(failed)?;
        let reply = ClaimReply { granted, owner: owner(node, epoch)? };
        if moved {
            self.announce(claim.key, &reply.owner).await?;
        }
        Ok(reply)
    }

    async fn sessions(&self) -> Result<Option<HashMap<NodeId, u64>>, StoreError> {
        // Redis would have to count all keys.
        Ok(None)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        redis::cmd("PING").exec_async(&mut self.connection.clone()).await.map_err(failed)
    }

    async fn follow(&self, events: mpsc::Sender<Event>) {
        while !events.is_closed() {
            if let Err(error) = self.follow_once(&events).await {
                tracing::warn!("cannot follow the changes in Redis: {error}; trying again");
            }
            tokio::time::sleep(RETRY.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    }
}
