//! Odoo's sessions, carried from node to node: files are watched and published, sealed, and written where
//! they are needed.

use std::{sync::Arc, time::Duration};

use affinity::{Membership, NodeId, NodeState, wire::CarriedReport};
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout_at},
};

use self::{carrier::Carrier, disk::Disk, watch::Seen};
use crate::{
    directory::Directory,
    files::Root,
    metrics::Metrics,
    registry::Registry,
    store::{CopyEvent, EndedBy, Listed, News},
};

mod act;
mod carrier;
mod decide;
mod disk;
mod goner;
mod holders;
#[cfg(test)]
mod hostile;
mod layout;
mod memory;
mod seal;
mod settle;
mod snapshot;
mod step;
mod watch;
mod writable;

pub(crate) use seal::{SIGNATURE, Sealer};
pub(crate) use settle::{Brought, bring, end, may_take_over, settled};
pub(crate) use writable::{check, has_room};

/// How often everything is looked at, whatever happened.
const EVERY: Duration = Duration::from_secs(600);
/// Reasons for a look at everything that come together lead to one.
const TOGETHER: Duration = Duration::from_millis(200);
/// How long the nodes must be the same before standbys move: a restart of one is no reason.
const NODES_SETTLE: Duration = Duration::from_secs(5);
/// How often its progress is logged.
const PROGRESS: Duration = Duration::from_secs(2);

/// What is carried, and how.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The sessions directories of nodes.
    pub(crate) directories: Vec<(NodeId, Root)>,
    pub(crate) sealer: Arc<Sealer>,
    /// How many sessions a second are looked at when all of them are.
    pub(crate) rate: u32,
    /// How long Odoo keeps a session that nobody saves.
    pub(crate) lifetime: Duration,
}

/// The carriers of the nodes whose sessions this sidecar carries.
#[derive(Clone, Default)]
pub(crate) struct Carriers(Arc<[Arc<Carrier>]>);

impl Carriers {
    /// Starts to carry.
    pub(crate) fn start(
        plan: Plan,
        directory: &Arc<Directory>,
        registry: &Registry,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let Plan { directories, sealer, rate, lifetime } = plan;
        let carrier = |(node, root): (NodeId, Root)| {
            let disk = Disk::new(root);
            let store = directory.shared_store();
            let membership = registry.membership();
            Arc::new(Carrier::new(
                node,
                disk,
                Arc::clone(&sealer),
                store,
                membership,
                lifetime,
                Arc::clone(metrics),
            ))
        };
        let carriers = Self(directories.into_iter().map(carrier).collect());
        let mut reasons = Vec::new();
        for carrier in carriers.0.iter() {
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(look_at_everything(Arc::clone(carrier), receiver, rate));
            tokio::spawn(follow_disk(Arc::clone(carrier), sender.clone()));
            reasons.push(sender);
        }
        if !carriers.0.is_empty() {
            tokio::spawn(follow_copies(carriers.clone(), Arc::clone(directory), reasons.clone()));
            tokio::spawn(follow_owners(carriers.clone(), Arc::clone(directory)));
            let own = carriers.0.iter().map(|carrier| carrier.node.clone()).collect();
            tokio::spawn(follow_nodes(registry.membership(), own, reasons));
        }
        carriers
    }

    /// How it stands with each node.
    pub(crate) fn reports(&self) -> Vec<(NodeId, CarriedReport)> {
        self.0.iter().map(|carrier| (carrier.node.clone(), carrier.report())).collect()
    }

    /// How it stands with one node, if it is carried here.
    pub(crate) fn report(&self, node: &NodeId) -> Option<CarriedReport> {
        self.0.iter().find(|carrier| carrier.node == *node).map(|carrier| carrier.report())
    }

    /// Whether a node has sessions that are being looked at, if it is carried here.
    fn is_busy(&self, node: &NodeId) -> Option<bool> {
        self.0.iter().find(|carrier| carrier.node == *node).map(|carrier| carrier.is_busy())
    }

    /// What is not carried yet, in words.
    pub(crate) fn unfinished(&self) -> Option<String> {
        self.reports().into_iter().find(|(_, report)| !report.complete).map(|(node, report)| {
            format!("{} of {} sessions of {node} have been looked at", report.looked_at, report.of)
        })
    }
}

/// Asks for a look at everything; one that is asked for already is enough.
fn ask(reasons: &mpsc::Sender<()>) {
    let _ = reasons.try_send(());
}

async fn follow_disk(carrier: Arc<Carrier>, reasons: mpsc::Sender<()>) {
    let (sender, mut seen) = mpsc::channel(1_024);
    let disk = carrier.disk.clone();
    tokio::spawn(async move { watch::watch(&disk, &sender).await });
    while let Some(one) = seen.recv().await {
        match one {
            Seen::Changed(place) => carrier.changed(place),
            Seen::Removed(place) => carrier.removed(place),
            Seen::Anything => ask(&reasons),
        }
    }
}

async fn follow_copies(carriers: Carriers, directory: Arc<Directory>, reasons: Vec<mpsc::Sender<()>>) {
    let (sender, mut events) = mpsc::channel(1_024);
    let store = directory.shared_store();
    tokio::spawn(async move { store.follow_copies(sender).await });
    while let Some(event) = events.recv().await {
        match event {
            CopyEvent::Of(key, News::Published(by)) => {
                carriers.0.iter().for_each(|carrier| carrier.published(key, Some(&by)));
            }
            CopyEvent::Of(key, News::Ended) => {
                carriers.0.iter().for_each(|carrier| carrier.published(key, None))
            }
            CopyEvent::Of(key, News::Wanted(by)) => {
                carriers
                    .0
                    .iter()
                    .filter(|carrier| carrier.node == by)
                    .for_each(|carrier| carrier.wanted(key));
            }
            CopyEvent::Lost => {
                for carrier in carriers.0.iter() {
                    tokio::spawn(bear_witness(Arc::clone(carrier)));
                }
                reasons.iter().for_each(ask);
            }
        }
    }
}

/// Tells a store that may have lost its memory which sessions have ended.
async fn bear_witness(carrier: Arc<Carrier>) {
    for key in carrier.ended() {
        if let Err(error) = carrier.store.end(key, EndedBy::Witness(carrier.node.clone())).await {
            // What is said again when the store tells that it is back.
            tracing::debug!("a session's end cannot be told: {error}");
            return;
        }
    }
}

/// A node that becomes a session's owner publishes what it has.
async fn follow_owners(carriers: Carriers, directory: Arc<Directory>) {
    let mut news = directory.news();
    let mut cursor = directory.changes_since(Default::default()).0;
    while news.changed().await.is_ok() {
        let (now, changes) = directory.changes_since(cursor);
        cursor = now;
        for change in changes.into_iter().flatten() {
            carriers.0.iter().for_each(|carrier| carrier.owner_changed(change.key));
        }
    }
}

/// Standbys move when nodes come and go, and when they are drained: a drained one is nobody's standby.
async fn follow_nodes(
    mut membership: tokio::sync::watch::Receiver<Arc<Membership>>,
    own: Vec<NodeId>,
    reasons: Vec<mpsc::Sender<()>>,
) {
    let serving = |nodes: &Membership| -> Vec<(NodeId, NodeState)> {
        let nodes = nodes.nodes().iter().filter(|node| node.state != NodeState::Down && node.carries);
        nodes.map(|node| (node.id.clone(), node.state)).collect()
    };
    let mut known = serving(&membership.borrow_and_update());
    while membership.changed().await.is_ok() {
        let settled = Instant::now() + NODES_SETTLE;
        let mut moved = false;
        loop {
            // Also one that is back by now: it missed what it was told meanwhile.
            let now = serving(&membership.borrow_and_update());
            moved |= now != known;
            let serves = |nodes: &[(NodeId, NodeState)], id| nodes.iter().any(|(node, _)| node == id);
            // A node that is back may be the next to be needed, and lacks what it missed.
            if own.iter().any(|id| serves(&now, id) && !serves(&known, id)) {
                break;
            }
            match timeout_at(settled, membership.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => break,
            }
        }
        if moved {
            known = serving(&membership.borrow_and_update());
            reasons.iter().for_each(ask);
        }
    }
}

/// Looks at everything now and then, and whenever there is a reason.
async fn look_at_everything(carrier: Arc<Carrier>, mut reasons: mpsc::Receiver<()>, rate: u32) {
    loop {
        if let Ok(None) = tokio::time::timeout(EVERY, reasons.recv()).await {
            return;
        }
        sleep(TOGETHER).await;
        let _ = reasons.try_recv();
        if let Err(problem) = look_once(&carrier, rate).await {
            tracing::warn!(node = %carrier.node, "its sessions cannot be looked at: {problem}");
            // The directory may not be there yet: then there is nothing to wait for.
            carrier.progress.send_replace(Some((0, 0)));
        }
    }
}

async fn look_once(carrier: &Arc<Carrier>, rate: u32) -> Result<(), String> {
    let places = on_disk(carrier).await.map_err(|error| error.to_string())?;
    let of = places.len() as u64;
    carrier.progress.send_replace(Some((0, of)));
    let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut logged = Instant::now();
    for (number, place) in (1..).zip(places) {
        ticks.tick().await;
        carrier.visited(place.key(), Some(place));
        carrier.progress.send_replace(Some((number, of)));
        if logged.elapsed() > PROGRESS {
            logged = Instant::now();
            tracing::info!(node = %carrier.node, "{number} of {of} sessions have been looked at");
        }
    }
    // What the node should have and has not: files that went, or were published, while nobody watched.
    let mut from = None::<String>;
    loop {
        let page = carrier.store.list(from.as_deref()).await.map_err(|error| error.to_string())?;
        for Listed { key, owner, version } in page.sessions {
            let should_have = || owner.node == carrier.node || version > 0 && carrier.holds(key, &owner.node);
            if !carrier.knows(key) && should_have() {
                ticks.tick().await;
                carrier.visited(key, None);
            }
        }
        from = page.next;
        if from.is_none() {
            return Ok(());
        }
    }
}

/// Every session on the node's disk.
async fn on_disk(carrier: &Carrier) -> std::io::Result<Vec<disk::Place>> {
    let disk = carrier.disk.clone();
    let walk = move || {
        let mut places = Vec::new();
        disk.walk(&mut |place| {
            places.push(place);
            true
        })?;
        Ok(places)
    };
    spawn_blocking(walk).await.map_err(std::io::Error::other)?
}
