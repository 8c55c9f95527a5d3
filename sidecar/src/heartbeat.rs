//! Nodes and loads through the store: tells what this sidecar knows, and hears what others know.

use std::{sync::Arc, time::Duration};

use affinity::NodeId;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    api, directory::Directory, lasting::Lasting, registry::Registry, sessions::Carriers, store::Drain,
    store::StoreError,
};

/// How often, unless the store says that there is news.
const EVERY: Duration = Duration::from_secs(1);

/// Registers the node `beside` this sidecar once it answers, and keeps the registry up to date.
pub(crate) fn start(
    directory: &Arc<Directory>,
    registry: &Arc<Registry>,
    carriers: &Carriers,
    beside: Option<NodeId>,
) {
    if let Some(id) = beside {
        let (directory, registry) = (Arc::clone(directory), Arc::clone(registry));
        let carriers = carriers.clone();
        tokio::spawn(async move { register(&directory, &registry, &carriers, &id).await });
    }
    let (directory, registry) = (Arc::clone(directory), Arc::clone(registry));
    tokio::spawn(async move { follow(&directory, &registry).await });
}

async fn register(directory: &Directory, registry: &Registry, carriers: &Carriers, id: &NodeId) {
    let mut membership = registry.membership();
    let fault = Lasting::new("registering this node in the store");
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = membership.changed() => {}
        }
        if let Some(registration) = registry.registration(id, carriers.report(id)) {
            match directory.store().register(&registration).await {
                Ok(()) => fault.works(),
                Err(error) => fault.failed(error),
            }
        }
    }
}

async fn follow(directory: &Directory, registry: &Registry) {
    let mut news = directory.node_news();
    let (reading, needs) = (Lasting::new("reading the nodes from the store"), Lasting::new("the store"));
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = news.changed() => {}
        }
        let told = registry.told(directory.loads());
        match directory.store().roster(&told).await {
            Ok(roster) => {
                reading.works();
                for (id, word) in registry.take_in(roster, &told) {
                    put_back(directory, &id, word).await;
                }
            }
            // What is known stays: who cannot be asked about is not gone.
            Err(error) => {
                reading.failed(&error);
                // Whatever is refused shows here; one that cannot be reached is said already.
                if let StoreError::Unreachable(_) = error {
                    continue;
                }
            }
        }
        match directory.store().ping().await {
            Ok(()) => {
                needs.works();
                api::store_works();
            }
            Err(error) => needs.failed(error),
        }
    }
}

/// Puts back that an operator drained a node, which a store that came back empty or older does not know. Whoever
/// undrained it since, anywhere, said something later, and that stays.
async fn put_back(directory: &Directory, id: &NodeId, word: Drain) {
    match directory.store().restore_drain(id, word).await {
        Ok(true) => tracing::warn!(
            node = %id,
            "the store had lost that it is drained, and has been told again; if it is not to be: mooring undrain {id}"
        ),
        // Another sidecar was faster, or knows better.
        Ok(false) => {}
        Err(error) => tracing::debug!("that a node is drained cannot be put back: {error}"),
    }
}
