//! The directory in Redis, for sidecars on several hosts.

use std::{sync::Arc, time::Duration};

use affinity::{
    Node, NodeId, SessionKey,
    wire::{Claim, ClaimReply, LeaseHolder, LeaseReply, LeaseRequest, Owner},
};
use async_trait::async_trait;
use futures::future::try_join_all;
use redis::{
    AsyncCommands, ErrorKind, RedisError, Script, ScriptInvocation,
    cluster_routing::{RoutingInfo, SingleNodeRoutingInfo},
};
use tokio::sync::mpsc;

use self::{
    keys::{Keys, Stream},
    link::{Connection, Link, said},
    needs::Needs,
    scripts::{ANNOUNCE, CLAIM, DRAIN, END, HAS_COPY, LEASE, OWNER, PUBLISH, REGISTER, ROSTER},
};
use super::{
    Copy, CopyEvent, Drain, EndedBy, Event, FORGOTTEN_AFTER, FileRecord, FilesPage, FilesPlace, Lifetimes,
    Listed, Page, Publication, Published, Registered, Registration, Roster, Store, StoreError, TOLD_AGE,
};
use crate::lists::Told;

mod address;
mod copy;
mod files;
mod follow;
mod keys;
mod link;
mod needs;
mod pause;
mod scripts;
mod values;

pub(crate) use address::{Access, InvalidUrl};
pub(crate) use values::{Found, ValueEvent, Values};

/// How often a change is told again that could not be told, and how long after.
const ANNOUNCEMENTS: u32 = 60;
const ANNOUNCE_AGAIN: Duration = Duration::from_millis(500);
/// Keys looked at in one step of a scan.
const SCAN: usize = 1_000;

/// A Redis server, a set of them that Sentinels watch over, or a cluster.
pub(crate) struct Redis {
    link: Arc<Link>,
    keys: Arc<Keys>,
    lifetimes: Lifetimes,
    /// This sidecar's name in the store.
    sidecar: String,
    needs: Needs,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The client's own form shows the password.
        f.debug_struct("Redis").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Redis {
    /// A store that connects when it is first needed.
    ///
    /// # Errors
    /// If the URL is none, or a file beside it cannot be read.
    pub(crate) fn open(
        url: &str,
        access: &Access,
        prefix: &str,
        lifetimes: Lifetimes,
    ) -> Result<Self, InvalidUrl> {
        Ok(Self {
            link: Link::new(url, access)?,
            keys: Arc::new(Keys::new(prefix)),
            lifetimes,
            sidecar: format!("{:016x}", rand::random::<u64>()),
            needs: Needs::new(prefix, access.user.as_deref()),
        })
    }

    /// Tells what a script could not tell by itself, now or in a while.
    async fn announce(&self, stream: &Stream, fields: Vec<(&'static str, String)>) {
        let (link, stream) = (Arc::clone(&self.link), stream.clone());
        let tell = async move || {
            let mut script = ANNOUNCE.key(&stream.entries);
            script.key(&stream.told);
            for (name, value) in &fields {
                script.arg(name).arg(value);
            }
            link.run(async |connection| script.invoke_async::<()>(connection).await).await
        };
        if tell().await.is_err() {
            tokio::spawn(async move {
                for _ in 0..ANNOUNCEMENTS {
                    tokio::time::sleep(ANNOUNCE_AGAIN).await;
                    if tell().await.is_ok() {
                        return;
                    }
                }
                tracing::error!("a change could not be told; who cached what was asks within the hour");
            });
        }
    }

    /// Tells that a session's copy changed, where the script could not.
    async fn announce_copy(&self, key: SessionKey, what: (&'static str, String)) {
        if !self.link.is_one_server() {
            self.announce(&self.keys.copies, vec![("key", key.to_string()), what]).await;
        }
    }

    /// A script over a session's hash that tells what it did, where it can.
    fn copy_script(&self, script: &'static Script, key: SessionKey) -> ScriptInvocation<'static> {
        let mut script = script.key(self.keys.owner(key));
        if self.link.is_one_server() {
            script.key(&self.keys.copies.entries).key(&self.keys.copies.told);
        }
        script
    }

    /// Notes a word on a node, or puts one back; returns when it was said by the store's account, or 0 if
    /// something as late is there.
    async fn say_drain(&self, node: &NodeId, word: Drain, is_new: bool) -> Result<u64, StoreError> {
        let mut script = DRAIN.key(&self.keys.drains);
        script.key(&self.keys.changes.entries).key(&self.keys.changes.told);
        script.arg(node.as_str()).arg(u8::from(word.draining)).arg(word.said).arg(u8::from(is_new));
        self.link.run(async |connection| script.invoke_async(connection).await).await.map_err(failed)
    }

    /// One step through all keys of owners: the names found, and where to go on.
    async fn scan(&self, place: &ScanPlace) -> Result<(Vec<String>, Option<ScanPlace>), RedisError> {
        let pattern = self.keys.owners();
        self.link
            .run(async |connection| {
                let servers = servers(connection).await?;
                let mut scan = redis::cmd("SCAN");
                scan.arg(place.cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN);
                let (cursor, names): (u64, Vec<String>) = match connection {
                    Connection::Server(server) => scan.query_async(server).await?,
                    Connection::Cluster(cluster) => {
                        let Some((host, port)) = servers.get(place.server).cloned() else {
                            return Ok((vec![], None));
                        };
                        let route = RoutingInfo::SingleNode(SingleNodeRoutingInfo::ByAddress { host, port });
                        redis::from_redis_value(cluster.route_command(scan, route).await?)?
                    }
                };
                let next = if cursor != 0 {
                    Some(ScanPlace { server: place.server, cursor })
                } else {
                    Some(ScanPlace { server: place.server + 1, cursor: 0 })
                        .filter(|next| next.server < servers.len())
                };
                Ok((names, next))
            })
            .await
    }
}

/// Where a scan stands.
struct ScanPlace {
    server: usize,
    cursor: u64,
}

/// The servers to scan: of a cluster, all that hold slots.
async fn servers(connection: &mut Connection) -> Result<Vec<(String, u16)>, RedisError> {
    let Connection::Cluster(cluster) = connection else { return Ok(vec![(String::new(), 0)]) };
    let nodes: String = redis::cmd("CLUSTER").arg("NODES").query_async(cluster).await?;
    let mut servers: Vec<(String, u16)> = nodes
        .lines()
        .filter_map(|line| {
            // ID HOST:PORT@BUS[,NAME] FLAGS …
            let mut words = line.split(' ').skip(1);
            let (address, flags) = (words.next()?, words.next()?);
            let (host, port) = address.split('@').next()?.rsplit_once(':')?;
            let serves = flags.split(',').any(|flag| flag == "master") && !flags.contains("fail");
            serves.then_some((host.to_owned(), port.parse().ok()?))
        })
        .collect();
    servers.sort();
    Ok(servers)
}

fn failed(error: RedisError) -> StoreError {
    // The error's own text names no password; the URL, which does, is not in it.
    let text = said(&error);
    match error.kind() {
        ErrorKind::UnexpectedReturnType | ErrorKind::Parse => StoreError::Foreign(text),
        // Before Redis 7 the error's code is the script's.
        _ if text.contains("WRONGTYPE") => StoreError::Foreign(text),
        _ if needs::refused(&error).is_some() => StoreError::Refused { problem: text, remedy: String::new() },
        _ => StoreError::Unreachable(text),
    }
}

fn holder(name: String, left_ms: i64) -> LeaseHolder {
    LeaseHolder { name, left_ms: u64::try_from(left_ms).unwrap_or_default() }
}

fn owner(node: String, epoch: u64) -> Result<Owner, StoreError> {
    let node = NodeId::new(node).map_err(|error| StoreError::Foreign(error.to_string()))?;
    Ok(Owner { node, epoch })
}

/// A node as [`REGISTER`] keeps it: when, what it is, and how it does.
fn registered(name: &str, text: &str, now: u64) -> Option<Registered> {
    let mut parts = text.splitn(3, ' ');
    let beat: u64 = parts.next()?.parse().ok()?;
    let node: Node = serde_json::from_str(parts.next()?).ok()?;
    let condition = serde_json::from_str(parts.next()?).ok()?;
    let age = Duration::from_secs(now.saturating_sub(beat));
    Some(Registered { node, condition, beat, age }).filter(|it| it.node.id.as_str() == name)
}

/// What an operator said, as [`DRAIN`] keeps it: 1 or 0, and when.
fn drain(text: &str) -> Option<Drain> {
    let (draining, said) = text.split_once(' ')?;
    Some(Drain { draining: draining == "1", said: said.parse().ok()? })
}

#[async_trait]
impl Store for Redis {
    async fn owner(&self, key: SessionKey) -> Result<Option<Owner>, StoreError> {
        let Lifetimes { durable, .. } = self.lifetimes;
        let mut script = OWNER.key(self.keys.owner(key));
        script.arg(durable.as_millis() as u64);
        script.arg(durable.saturating_sub(self.lifetimes.prolong_after()).as_millis() as u64);
        let found: (Option<String>, Option<u64>) =
            self.link.run(async |connection| script.invoke_async(connection).await).await.map_err(failed)?;
        match found {
            (Some(node), Some(epoch)) => owner(node, epoch).map(Some),
            (Some(node), None) => Err(StoreError::Foreign(format!("{node} without an epoch"))),
            (None, _) => Ok(None),
        }
    }

    async fn claim(&self, claim: Claim) -> Result<ClaimReply, StoreError> {
        let mut script = CLAIM.key(self.keys.owner(claim.key));
        if self.link.is_one_server() {
            script.key(&self.keys.changes.entries).key(&self.keys.changes.told);
        }
        script.arg(claim.node.as_str()).arg(claim.expect).arg(claim.key.to_string());
        script.arg(self.lifetimes.provisional.as_millis() as u64);
        let (granted, node, epoch, untold): (bool, String, u64, bool) =
            self.link.run(async |connection| script.invoke_async(connection).await).await.map_err(failed)?;
        let reply = ClaimReply { granted, owner: owner(node, epoch)? };
        if untold {
            let Owner { node, epoch } = &reply.owner;
            let fields =
                [("key", claim.key.to_string()), ("node", node.to_string()), ("epoch", epoch.to_string())];
            self.announce(&self.keys.changes, fields.into()).await;
        }
        Ok(reply)
    }

    async fn list(&self, from: Option<&str>) -> Result<Page, StoreError> {
        let unknown = || StoreError::Foreign("no place in a scan".into());
        let place = match from {
            None => ScanPlace { server: 0, cursor: 0 },
            Some(text) => {
                let (server, cursor) = text.split_once('/').ok_or_else(unknown)?;
                let (server, cursor) = (server.parse().ok(), cursor.parse().ok());
                server.zip(cursor).map(|(server, cursor)| ScanPlace { server, cursor }).ok_or_else(unknown)?
            }
        };
        let (names, next) = self.scan(&place).await.map_err(failed)?;
        let mut sessions = Vec::new();
        type Found = (Option<String>, Option<u64>, Option<u64>, Option<u8>);
        let ask = async |name: &String| -> Result<Found, RedisError> {
            let fields = ["node", "epoch", "version", "ended"];
            self.link.run(async |connection| connection.hmget(name, &fields).await).await
        };
        // A few at once: a pipeline cannot span a cluster's servers.
        for chunk in names.chunks(100) {
            let found = try_join_all(chunk.iter().map(&ask)).await.map_err(failed)?;
            sessions.extend(chunk.iter().zip(found).filter_map(|(name, (node, epoch, version, ended))| {
                let version = version.filter(|_| ended.is_none()).unwrap_or_default();
                let owner = owner(node?, epoch?).ok()?;
                Some(Listed { key: self.keys.session(name)?, owner, version })
            }));
        }
        Ok(Page { sessions, next: next.map(|place| format!("{}/{}", place.server, place.cursor)) })
    }

    async fn register(&self, registration: &Registration) -> Result<(), StoreError> {
        let Registration { node, condition } = registration;
        let foreign = |error: serde_json::Error| StoreError::Foreign(error.to_string());
        // Names and addresses only, so that there is no space in it.
        let text = serde_json::to_string(node).map_err(foreign)?;
        let condition = serde_json::to_string(condition).map_err(foreign)?;
        let mut script = REGISTER.key(&self.keys.nodes);
        script.key(&self.keys.changes.entries).key(&self.keys.changes.told);
        script.arg(node.id.as_str()).arg(text).arg(condition);
        self.link.run(async |connection| script.invoke_async(connection).await).await.map_err(failed)
    }

    async fn set_draining(&self, node: &NodeId, word: Drain) -> Result<Drain, StoreError> {
        let said: u64 = self.say_drain(node, word, true).await?;
        Ok(Drain { said, ..word })
    }

    async fn restore_drain(&self, node: &NodeId, word: Drain) -> Result<bool, StoreError> {
        Ok(self.say_drain(node, word, false).await? != 0)
    }

    async fn roster(&self, own: &Told) -> Result<Roster, StoreError> {
        let own = serde_json::to_string(own).map_err(|error| StoreError::Foreign(error.to_string()))?;
        let mut script = ROSTER.key(&self.keys.nodes);
        script.key(&self.keys.drains).key(&self.keys.sidecars).key(&self.keys.cron);
        script.arg(&self.sidecar).arg(own).arg(TOLD_AGE.as_secs()).arg(FORGOTTEN_AFTER.as_secs());
        type Named = Vec<(String, String)>;
        let (now, nodes, drains, sidecars, cron): (u64, Named, Named, Named, Option<(String, i64)>) =
            self.link.run(async |connection| script.invoke_async(connection).await).await.map_err(failed)?;
        let others = sidecars.iter().filter(|(sidecar, _)| *sidecar != self.sidecar);
        Ok(Roster {
            nodes: nodes.iter().filter_map(|(name, text)| registered(name, text, now)).collect(),
            drains: drains
                .into_iter()
                .filter_map(|(name, text)| Some((NodeId::new(name).ok()?, drain(&text)?)))
                .collect(),
            others: others.filter_map(|(_, text)| Told::read(text, now)).collect(),
            cron: cron.map(|(name, left)| holder(name, left)),
        })
    }

    async fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, StoreError> {
        let mut script = LEASE.key(&self.keys.cron);
        script.key(&self.keys.remembers);
        script.arg(request.token).arg(&request.name).arg(request.for_ms).arg(u8::from(request.held));
        let (granted, held): (bool, Option<(String, i64)>) =
            self.link.run(async |connection| script.invoke_async(connection).await).await.map_err(failed)?;
        Ok(LeaseReply { granted, holder: held.map(|(name, left)| holder(name, left)) })
    }

    async fn ping(&self) -> Result<(), StoreError> {
        // Of a cluster, the part that everybody follows.
        let told =
            self.link.run(async |connection| connection.get::<_, Option<u64>>(&self.keys.changes.told).await);
        if let Err(error) = told.await
            && needs::refused(&error).is_none()
        {
            return Err(failed(error));
        }
        self.needs.check(&self.link, &self.keys).await
    }

    async fn follow(&self, events: mpsc::Sender<Event>) {
        follow::follow(&self.link, &self.keys, &events).await;
    }

    async fn copy(&self, key: SessionKey) -> Result<Option<Copy>, StoreError> {
        let name = self.keys.owner(key);
        let fields = self.link.run(async |connection| connection.hgetall(&name).await).await;
        copy::read(fields.map_err(failed)?)
    }

    async fn publish(&self, key: SessionKey, new: Publication) -> Result<Published, StoreError> {
        let lifetime = if new.anonymous { self.lifetimes.provisional } else { self.lifetimes.durable };
        let mut script = self.copy_script(&PUBLISH, key);
        script.arg(new.node.as_str()).arg(new.epoch).arg(new.base).arg(&new.digest[..]);
        script.arg(u8::from(new.anonymous)).arg(&new.seal[..]).arg(key.to_string());
        let proofs: Vec<String> = new.proofs.iter().map(ToString::to_string).collect();
        script.arg(lifetime.as_millis() as u64).arg(proofs.join(" "));
        let (stored, node, epoch, version): (bool, String, u64, u64) =
            self.link.run(async |connection| script.invoke_async(connection).await).await.map_err(failed)?;
        if stored {
            self.announce_copy(key, ("published", new.node.to_string())).await;
            let node = NodeId::new(node).map_err(|error| StoreError::Foreign(error.to_string()))?;
            return Ok(Published::Stored { owner: Owner { node, epoch }, version });
        }
        let gone = || StoreError::Unreachable("the session expired meanwhile".into());
        self.copy(key).await?.map(Published::Refused).ok_or_else(gone)
    }

    async fn has_copy(&self, key: SessionKey, node: &NodeId, version: u64) -> Result<(), StoreError> {
        let mut script = HAS_COPY.key(self.keys.owner(key));
        script.arg(node.as_str()).arg(version);
        self.link.run(async |connection| script.invoke_async(connection).await).await.map_err(failed)
    }

    async fn end(&self, key: SessionKey, by: EndedBy) -> Result<bool, StoreError> {
        let (node, version, witness, proof) = match &by {
            EndedBy::Node(node, version) => (node.as_str(), *version, "", String::new()),
            EndedBy::Witness(node) => ("", 0, node.as_str(), String::new()),
            EndedBy::Holder(proof) => ("", 0, "", proof.to_string()),
            EndedBy::Operator => ("", 0, "", String::new()),
        };
        let mut script = self.copy_script(&END, key);
        script.arg(node).arg(version).arg(key.to_string()).arg(self.lifetimes.durable.as_millis() as u64);
        script.arg(witness).arg(proof);
        let ended: bool =
            self.link.run(async |connection| script.invoke_async(connection).await).await.map_err(failed)?;
        if ended {
            self.announce_copy(key, ("ended", "1".to_owned())).await;
        }
        Ok(ended)
    }

    async fn want_copy(&self, key: SessionKey, node: &NodeId) -> Result<(), StoreError> {
        let fields = vec![("key", key.to_string()), ("wanted", node.to_string())];
        self.announce(&self.keys.copies, fields).await;
        Ok(())
    }

    async fn follow_copies(&self, events: mpsc::Sender<CopyEvent>) {
        follow::follow(&self.link, &self.keys, &events).await;
    }

    async fn files(&self, set: &str, after: &FilesPlace) -> Result<FilesPage, StoreError> {
        self.read_files(set, after).await
    }

    async fn put_file(&self, set: &str, file: &FileRecord) -> Result<Option<FileRecord>, StoreError> {
        self.write_file(set, file).await
    }
}
